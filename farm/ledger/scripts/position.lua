-- How many jobs go before a queued one, by the order of dispatch as it stands, and how fast jobs end. Reads only.
-- Touches: job:, queue:, lanes:, vtime:, rate:, counts:.
-- ARGV: id.
-- Returns {position from 1, or 0 when not queued, jobs per second}.
local job = load(ARGV[1])
if not job or job.state ~= 'queued' and job.state ~= 'dispatched' then return {0, '0'} end
local rate = redis.call('HMGET', P .. 'rate:' .. job.model, 'at', 'per_s')
local per_s = tonumber(rate[2] or 0) * math.exp(-(NOW - tonumber(rate[1] or NOW)) / 30000)
local dispatched = tonumber(redis.call('HGET', P .. 'counts:' .. job.model, 'dispatched') or 0)
-- Its message is out: it runs in a moment, however slowly jobs came in lately.
if job.state == 'dispatched' then return {1, '0'} end
local ahead = dispatched
for _, level in ipairs(LEVELS) do
  local own = level == job.priority
  local rank = own and (redis.call('ZRANK', key_queue(job), job.id) or 0)
  for _, tenant in ipairs(redis.call('ZRANGE', key_lanes(job.model, level), 0, 99)) do
    local waiting = redis.call('ZCARD', key_queue({model = job.model, priority = level, tenant = tenant}))
    -- At the job's own level tenants take turns, so another's jobs go before it at the pace of its own.
    if own then waiting = tenant == job.tenant and rank or math.min(waiting, rank + 1) end
    ahead = ahead + waiting
  end
  if own then break end
end
return {ahead + 1, tostring(per_s)}
