-- What time brings: leases end, waits end, deadlines pass, unclaimed messages go out again, old results go.
-- Repeating it is harmless. At most `most` jobs of each kind a call.
-- Touches: leader, schema, beat, grace, running, delayed, deadlines, dispatched, undelivered, kept:, kept_oldest,
--   kept_newest, kept_jobs, kept_bytes, kept_all, finished, finished_bytes, dead, totals, jobs:, usage_days, workers,
--   worker:, held:, names, and what a loss or an end touches.
-- ARGV: token, lock ms, most, stall ms, lease ms, retention ms, most strikes, most losses, unclaimed ms, most results,
--   most bytes of results, days to keep usage for.
-- Returns {'follower'} or {'leader', leases ended, deadlines passed, published again, then for each message to publish:
--   id, dispatch number, model, priority, plain headers}.
local holder = redis.call('GET', P .. 'leader')
if is_beyond_us() or holder and holder ~= ARGV[1] then return {'follower'} end
redis.call('SET', P .. 'leader', ARGV[1], 'PX', ARGV[2])
local most, lease, retention = tonumber(ARGV[3]), tonumber(ARGV[5]), tonumber(ARGV[6])
local limits = {retention = retention, strikes = tonumber(ARGV[7]), losses = tonumber(ARGV[8])}
local unclaimed = tonumber(ARGV[9])
if redis.call('GET', P .. 'usage_days') ~= ARGV[12] then redis.call('SET', P .. 'usage_days', ARGV[12]) end
beat(tonumber(ARGV[4]), lease)
local lines, answer = {}, {'leader', 0, 0, 0}

local function due(key, upto)
  return redis.call('ZRANGEBYSCORE', P .. key, '-inf', upto or NOW, 'LIMIT', 0, most)
end
local function say(new) for _, line in ipairs(new) do lines[#lines + 1] = line end end
local function publish(job)
  local parts = {job.id, int(job.dispatch), job.model, job.priority, job.plain or ''}
  for _, part in ipairs(parts) do answer[#answer + 1] = part end
end

for _, id in ipairs(due('deadlines')) do
  local job = load(id)
  if job and not has_ended(job) then
    say({finish(job, 'expired', retention, 'deadline', {'finish_reason', 'expired', 'resumed', int(job.base)})})
    answer[3] = answer[3] + 1
  else
    redis.call('ZREM', P .. 'deadlines', id)
  end
end

if NOW >= tonumber(redis.call('GET', P .. 'grace') or 0) then
  local by_worker, order, listed = {}, {}, {}
  local function add(id)
    local job = not listed[id] and load(id)
    listed[id] = true
    if not job or job.state ~= 'running' then return job end
    if not by_worker[job.worker] then
      by_worker[job.worker] = {}
      order[#order + 1] = job.worker
    end
    table.insert(by_worker[job.worker], job)
    answer[2] = answer[2] + 1
    return job
  end
  for _, id in ipairs(due('running')) do
    local job = add(id)
    if not job or job.state ~= 'running' then redis.call('ZREM', P .. 'running', id) end
  end
  for _, worker in ipairs(order) do
    -- A dead worker loses all at once, jobs claimed after its last beat too: blame needs to see who was aboard.
    local seen = tonumber(redis.call('ZSCORE', P .. 'workers', worker) or 0)
    local is_alive = seen > NOW - lease
    if not is_alive then
      for _, id in ipairs(redis.call('SMEMBERS', key_held(worker))) do add(id) end
    end
    total('leases_lost', #by_worker[worker])
    say(lose(by_worker[worker], 'lease_ended', limits, is_alive))
  end
end

for _, id in ipairs(due('delayed')) do
  local job = load(id)
  redis.call('ZREM', P .. 'delayed', id)
  if job and job.state == 'queued' then put_in_queue(job) end
end

-- Three times the same message, each wait twice as long; then it may be in a queue that nobody serves: start over.
for _, id in ipairs(due('dispatched')) do
  local job = load(id)
  if not job or job.state ~= 'dispatched' then
    redis.call('ZREM', P .. 'dispatched', id)
  elseif job.tries < 3 then
    redis.call('HSET', key_job(id), 'tries', job.tries + 1)
    redis.call('ZADD', P .. 'dispatched', NOW + unclaimed * 2 ^ (job.tries + 1), id)
    publish(job)
    answer[4] = answer[4] + 1
    total('republished')
  else
    requeue(job, NOW)
  end
end

for _, id in ipairs(due('undelivered')) do
  local job = load(id)
  if job and job.plain and job.tries < 8 then
    redis.call('HSET', key_job(id), 'tries', job.tries + 1)
    redis.call('ZADD', P .. 'undelivered', NOW + unclaimed * 2 ^ (job.tries + 1), id)
    publish(job)
  else
    redis.call('ZREM', P .. 'undelivered', id)
  end
end

-- Versions before this one have one list for all tenants. What stands there is moved, half as many as may be dropped.
local listed, moved, weight = redis.call('ZPOPMIN', P .. 'finished', math.ceil(most / 2)), {}, 0
for i = 1, #listed, 2 do
  local id, bytes, tenant = string.match(listed[i], '^([^|]*)|(%d+)|?(.*)$')
  if id then
    -- A member that names none is still older. No tenant's name holds a bracket.
    if tenant == '' then tenant = redis.call('HGET', key_job(id), 'tenant') or '(none)' end
    local is_new = redis.call('ZADD', key_kept(tenant), listed[i + 1], id .. '|' .. bytes)
    local sum = moved[tenant] or {jobs = 0, bytes = 0}
    sum.jobs, sum.bytes = sum.jobs + is_new, sum.bytes + is_new * bytes
    moved[tenant], weight = sum, weight + bytes
  end
end
for tenant, sum in pairs(moved) do reckon(tenant, sum.jobs, sum.bytes) end
if listed[1] and redis.call('DECRBY', P .. 'finished_bytes', int(weight)) <= 0 then
  redis.call('DEL', P .. 'finished_bytes')
end

-- After its TTL an id may have been used again: that job, or its own end, is not what its member speaks of.
local function drop(tenant, id, ended)
  local seen = redis.call('HMGET', key_job(id), 'state', 'finished')
  if seen[1] ~= 'dead' or tonumber(seen[2]) == ended then redis.call('ZREM', P .. 'dead', id) end
  if seen[1] and tonumber(seen[2] or 0) ~= ended then return end
  redis.call('ZREM', P .. 'undelivered', id)
  redis.call('ZREM', key_jobs(tenant), id)
  redis.call('DEL', key_job(id), key_out(id), key_history(id))
end

-- Drop a few of a tenant's oldest results while `goes(end of the next, what has gone)`. Returns how many.
local left, FEW = most - #listed / 2, 8 -- so many may go in this call; so many of one tenant at once
local function drop_few(tenant, goes)
  local found = redis.call('ZRANGE', key_kept(tenant), 0, math.min(left, FEW) - 1, 'WITHSCORES')
  local gone = {jobs = 0, bytes = 0}
  for i = 1, #found, 2 do
    local id, bytes = string.match(found[i], '^([^|]*)|(%d+)$')
    local ended = tonumber(found[i + 1])
    if not goes(ended, gone) then break end
    drop(tenant, id, ended)
    gone.jobs, gone.bytes = gone.jobs + 1, gone.bytes + bytes
  end
  if gone.jobs > 0 then redis.call('ZREMRANGEBYRANK', key_kept(tenant), 0, gone.jobs - 1) end
  reckon(tenant, -gone.jobs, -gone.bytes)
  left = left - gone.jobs
  return gone.jobs
end

local function is_old(ended) return ended <= NOW - retention end
while left > 0 do
  local first = redis.call('ZRANGEBYSCORE', P .. 'kept_oldest', '-inf', NOW - retention, 'LIMIT', 0, 1)
  if not first[1] or drop_few(first[1], is_old) == 0 then break end
end

-- Where there are too many, or they are too large, the oldest of whoever has most goes first. So nobody loses any who
-- has no more than an equal share.
local function trim(what, tenants, limit)
  while left > 0 do
    local excess = tonumber(redis.call('HGET', P .. 'kept_all', what) or 0) - limit
    local largest = redis.call('ZREVRANGE', tenants, 0, 1, 'WITHSCORES')
    if excess <= 0 or not largest[1] then break end
    local ahead = largest[2] - (largest[4] or 0)
    local function goes(_, gone) return gone[what] < excess and gone[what] <= ahead end
    if drop_few(largest[1], goes) == 0 then break end
  end
end
trim('jobs', P .. 'kept_jobs', tonumber(ARGV[10]))
trim('bytes', P .. 'kept_bytes', tonumber(ARGV[11]))

-- Workers that fell silent long ago and hold nothing. What they seem to hold and do not run is an orphan.
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', P .. 'workers', '-inf', NOW - 10 * lease, 'LIMIT', 0, most)) do
  for _, id in ipairs(redis.call('SRANDMEMBER', key_held(worker), most)) do
    local job = load(id)
    if not job or job.state ~= 'running' or job.worker ~= worker then redis.call('SREM', key_held(worker), id) end
  end
  if redis.call('SCARD', key_held(worker)) == 0 then
    local name = redis.call('HGET', key_worker(worker), 'name')
    if name and redis.call('HGET', P .. 'names', name) == worker then redis.call('HDEL', P .. 'names', name) end
    redis.call('DEL', key_worker(worker))
    redis.call('ZREM', P .. 'workers', worker)
  end
end
announce(lines)
return answer
