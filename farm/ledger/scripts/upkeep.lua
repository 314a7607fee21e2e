-- What time brings: leases end, waits end, deadlines pass, unclaimed messages go out again, old results go.
-- Repeating it is harmless. At most `most` jobs of each kind a call.
-- Touches: leader, schema, beat, grace, running, delayed, deadlines, dispatched, undelivered, finished, finished_bytes,
--   dead, totals, jobs:, usage_days, workers, worker:, held:, names, and what a loss or an end touches.
-- ARGV: token, lock ms, most, stall ms, lease ms, retention ms, most strikes, most losses, unclaimed ms, most finished,
--   most finished bytes, days to keep usage for.
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

-- After its TTL an id may have been used again: that job, or its own end, is not what this member speaks of.
local function drop(member)
  local id, bytes, tenant = string.match(member, '^([^|]*)|(%d+)|?(.*)$')
  local ended = tonumber(redis.call('ZSCORE', P .. 'finished', member))
  local seen = redis.call('HMGET', key_job(id), 'state', 'finished')
  redis.call('ZREM', P .. 'finished', member)
  redis.call('DECRBY', P .. 'finished_bytes', bytes)
  if seen[1] ~= 'dead' or tonumber(seen[2]) == ended then redis.call('ZREM', P .. 'dead', id) end
  if seen[1] and tonumber(seen[2] or 0) ~= ended then return end
  redis.call('ZREM', P .. 'undelivered', id)
  redis.call('ZREM', key_jobs(tenant), id)
  redis.call('DEL', key_job(id), key_out(id), key_history(id))
end
for _, member in ipairs(due('finished', NOW - retention)) do drop(member) end
local surplus = math.min(most, redis.call('ZCARD', P .. 'finished') - tonumber(ARGV[10]))
if surplus > 0 then
  for _, member in ipairs(redis.call('ZRANGE', P .. 'finished', 0, surplus - 1)) do drop(member) end
end
for _, member in ipairs(redis.call('ZRANGE', P .. 'finished', 0, most - 1)) do
  if tonumber(redis.call('GET', P .. 'finished_bytes') or 0) <= tonumber(ARGV[11]) then break end
  drop(member)
end

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
