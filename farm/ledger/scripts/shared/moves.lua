-- Moves of a job between the places of its states, and its history.

-- Give up a job's tokens: it begins anew. Whoever has read some of them finds out by the number of restarts.
local function start_over(job)
  local key = key_job(job.id)
  redis.call('DEL', key_out(job.id))
  redis.call('HDEL', key, 'first_token', 'revision')
  redis.call('HSET', key, 'base', '0', 'bytes', redis.call('HSTRLEN', key, 'request') + 200)
  redis.call('HINCRBY', key, 'restarts', 1)
  job.base, job.revision = 0, nil
end

-- Out of the place that its state has it in. stays: it waits for its turn afterwards, too.
local function leave(job, stays)
  local waited = job.state == 'queued' or job.state == 'dispatched'
  if job.state == 'queued' then
    if redis.call('ZREM', P .. 'delayed', job.id) == 0 then take_from_queue(job) end
  elseif job.state == 'dispatched' then
    redis.call('ZREM', P .. 'dispatched', job.id)
  elseif job.state == 'running' then
    redis.call('ZREM', P .. 'running', job.id)
    redis.call('SREM', key_held(job.worker), job.id)
  end
  count(job.model, job.state, -1)
  local change = waited and not stays and -1 or stays and not waited and 1 or 0
  if change ~= 0 then
    waiting(job.tenant, change, change * job.cost)
    waiting_at(job.model, job.priority, change)
  end
end

local function remember(job, entry)
  redis.call('RPUSH', key_history(job.id), cjson.encode(entry))
  redis.call('LTRIM', key_history(job.id), -20, -1)
end

local function record_attempt(job, reason)
  remember(job, {attempt = job.attempt, worker = job.worker, started_at = job.claimed / 1000, ended_at = NOW / 1000,
    reason = reason, tokens = redis.call('LLEN', key_out(job.id)) - job.base})
end

-- Back to queued, at once or not before a time. The nonce stays: its holder may still finish until another claims.
local function requeue(job, not_before)
  leave(job, true)
  job.state = 'queued'
  redis.call('HSET', key_job(job.id), 'state', 'queued', 'not_before', int(not_before), 'tries', '0')
  count(job.model, 'queued', 1)
  if not_before > NOW then redis.call('ZADD', P .. 'delayed', not_before, job.id) else put_in_queue(job) end
  wake()
end
