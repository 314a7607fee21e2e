-- Forget the virtual time of tenants that are idle and would start no earlier without it. Repeating it is harmless.
-- A newcomer starts at the clock, which never falls, or at the first of a lane, which falls by no more than what is
-- owed: charged for jobs that have not ended, and perhaps paid back. A tenant without a queued job that is below all of
-- these is as good as new. (One that owes something is above what would be left of its own time.)
-- And count the jobs that wait anew, unless that is much work: workers of an earlier schema do not count them.
-- Touches: vtime:, vclock:, lanes:, owed:, weights, queue:, dispatched, delayed, job:, depth:.
-- ARGV: model, most tenants to look at.
-- Returns how many were forgotten.
local model = ARGV[1]
local least = tonumber(redis.call('GET', P .. 'vclock:' .. model) or 0)
for _, level in ipairs(LEVELS) do
  local first = redis.call('ZRANGE', key_lanes(model, level), 0, 0, 'WITHSCORES')
  if first[2] then least = math.min(least, tonumber(first[2])) end
end
local owed = redis.call('HGETALL', P .. 'owed:' .. model)
for i = 1, #owed, 2 do
  local weight = tonumber(redis.call('HGET', P .. 'weights', owed[i]) or 1)
  least = math.min(least, vtime(model, owed[i]) - owed[i + 1] / weight)
end
local found, forgotten = redis.call('HRANDFIELD', P .. 'vtime:' .. model, ARGV[2], 'WITHVALUES'), 0
for i = 1, #found, 2 do
  local tenant, is_idle = found[i], tonumber(found[i + 1]) <= least
  for _, level in ipairs(LEVELS) do
    is_idle = is_idle and not redis.call('ZSCORE', key_lanes(model, level), tenant)
  end
  if is_idle then forgotten = forgotten + redis.call('HDEL', P .. 'vtime:' .. model, tenant) end
end
local MOST_LOOKS = 1000
local depth, looks = {}, redis.call('ZCARD', P .. 'dispatched') + redis.call('ZCARD', P .. 'delayed')
for _, level in ipairs(LEVELS) do looks = looks + redis.call('ZCARD', key_lanes(model, level)) end
if looks > MOST_LOOKS then return forgotten end
for _, level in ipairs(LEVELS) do
  depth[level] = 0
  for _, tenant in ipairs(redis.call('ZRANGE', key_lanes(model, level), 0, -1)) do
    depth[level] = depth[level] + redis.call('ZCARD', key_queue({model = model, priority = level, tenant = tenant}))
  end
end
for _, key in ipairs({P .. 'dispatched', P .. 'delayed'}) do
  for _, id in ipairs(redis.call('ZRANGE', key, 0, -1)) do
    local job = redis.call('HMGET', key_job(id), 'state', 'model', 'priority')
    if job[2] == model and (job[1] == 'queued' or job[1] == 'dispatched') then depth[job[3]] = depth[job[3]] + 1 end
  end
end
for level, jobs in pairs(depth) do redis.call('HSET', P .. 'depth:' .. model, level, jobs) end
return forgotten
