-- The queues: a place for each tenant, its virtual time, and how much waits.

-- Count jobs that wait for their turn at a priority of a model.
local function waiting_at(model, priority, jobs) redis.call('HINCRBY', P .. 'depth:' .. model, priority, jobs) end

-- Count jobs and tokens that wait for their turn: all jobs, and a tenant's. A tenant without any is forgotten.
local function waiting(tenant, jobs, tokens)
  if redis.call('INCRBY', P .. 'waiting', jobs) < 0 then redis.call('SET', P .. 'waiting', '0') end
  if redis.call('HINCRBY', P .. 'waiting_jobs', tenant, jobs) <= 0 then
    redis.call('HDEL', P .. 'waiting_jobs', tenant)
    redis.call('HDEL', P .. 'waiting_tokens', tenant)
  else
    redis.call('HINCRBY', P .. 'waiting_tokens', tenant, tokens)
  end
end

local function vtime(model, tenant) return tonumber(redis.call('HGET', P .. 'vtime:' .. model, tenant) or 0) end

local function set_vtime(model, tenant, value)
  local text = string.format('%.3f', value)
  redis.call('HSET', P .. 'vtime:' .. model, tenant, text)
  for _, level in ipairs(LEVELS) do redis.call('ZADD', key_lanes(model, level), 'XX', text, tenant) end
end

local function charge(job, tokens)
  local weight = tonumber(redis.call('HGET', P .. 'weights', job.tenant) or 1)
  set_vtime(job.model, job.tenant, math.max(0, vtime(job.model, job.tenant) + tokens / weight))
end

-- What a tenant is charged for jobs that have not ended, and may get back in part.
local function owe(job, tokens)
  local key = P .. 'owed:' .. job.model
  if redis.call('HINCRBY', key, job.tenant, int(tokens)) <= 0 then redis.call('HDEL', key, job.tenant) end
end

-- Where a tenant starts that opens a queue. While it waits at high or normal it keeps its time. Else it starts level
-- with the first in that lane, or with the latest dispatch if that is earlier: idleness earns nothing, and a tenant
-- that runs ahead at high priority pushes nobody back. Waiting at low does not count, or one idle low job
-- would earn credit.
local function starting_time(job)
  local own = vtime(job.model, job.tenant)
  for _, level in ipairs({'high', 'normal'}) do
    if redis.call('ZSCORE', key_lanes(job.model, level), job.tenant) then return own end
  end
  local start = tonumber(redis.call('GET', P .. 'vclock:' .. job.model) or 0)
  local first = redis.call('ZRANGE', key_lanes(job.model, job.priority), 0, 0, 'WITHSCORES')
  if first[2] then start = math.min(start, tonumber(first[2])) end
  return math.max(own, start)
end

-- Into its tenant's queue at its old place.
local function put_in_queue(job)
  local queue = key_queue(job)
  if redis.call('EXISTS', queue) == 0 then
    local start = starting_time(job)
    redis.call('ZADD', key_lanes(job.model, job.priority), start, job.tenant)
    set_vtime(job.model, job.tenant, start)
  end
  redis.call('ZADD', queue, job.seq, job.id)
end

local function take_from_queue(job)
  local queue = key_queue(job)
  redis.call('ZREM', queue, job.id)
  if redis.call('EXISTS', queue) == 0 then redis.call('ZREM', key_lanes(job.model, job.priority), job.tenant) end
end
