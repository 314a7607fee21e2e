-- Take one request from a tenant's allowance, and say what it has left of everything. Repeating it takes another one.
-- The allowance is a bucket of `burst` requests that fills at the tenant's rate; all that is kept of it is the time at
-- which it is full again (GCRA).
-- Touches: limits, pace:, waiting_jobs, waiting_tokens.
-- ARGV: tenant, then what the settings say, '' for no limit: requests per s, queued jobs, queued tokens.
-- Returns {1, or 0 when refused, burst or '', requests left, ms until all are there again, ms until the next one is,
--   jobs waiting, limit or '', tokens waiting, limit or ''}.
local tenant = ARGV[1]
local limit = limits_of(tenant)
local rate = limit('requests_per_s', ARGV[2])
local answer = {1, '', 0, 0, 0}
if rate then
  local burst = limit('burst', '') or math.max(1, math.ceil(2 * rate))
  local each = 1000 / rate
  local full_at = math.max(NOW, tonumber(redis.call('GET', P .. 'pace:' .. tenant) or 0))
  local wait = full_at + each - burst * each - NOW
  if wait > 0 then
    answer = {0, burst, 0, math.ceil(full_at - NOW), math.ceil(wait)}
  else
    full_at = full_at + each
    redis.call('SET', P .. 'pace:' .. tenant, string.format('%.3f', full_at), 'PX', math.ceil(full_at - NOW))
    answer = {1, burst, math.floor(burst - (full_at - NOW) / each + 1e-6), math.ceil(full_at - NOW), 0}
  end
end
local function standing(taken, most)
  answer[#answer + 1] = tonumber(taken or 0)
  answer[#answer + 1] = most and int(most) or ''
end
standing(redis.call('HGET', P .. 'waiting_jobs', tenant), limit('queued_jobs', ARGV[3]))
standing(redis.call('HGET', P .. 'waiting_tokens', tenant), limit('queued_tokens', ARGV[4]))
return answer
