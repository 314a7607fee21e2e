-- Take a dispatched job for a worker. A repetition with the same nonce gets the same answer.
-- A job goes on from its tokens only where the model that they are of is served; elsewhere, and if nobody noted which
-- that was, it begins anew: no answer is made of two revisions.
-- Touches: job:, out:, dispatched, delayed, running, held:, worker:, counts:, waiting, waiting_jobs, waiting_tokens,
--   deadlines, dropped:, history:, totals, and what an end touches.
-- ARGV: id, dispatch number, worker, nonce, lease ms, retention ms, suspect's wait ms, most strikes, most losses.
-- Returns {'claimed', request, attempt, retries, proof, ms to the deadline or '', plain, tenant, ms since it was
--     submitted or revived, '1' if an engine has had it before, token entries...}; proof is 0, or how many new tokens
--     clear a job that is on trial,
--   {'ended', state}, or {'stale'}, {'unknown'}, {'unregistered'}, {'draining'}, {'unable'}, {'suspect'}, {'newer'}:
--   nothing to do. A job of a newer schema than ours waits for a worker that knows it.
--   A worker is unable while it says that it has room for none.
local id, number, worker, nonce = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local NEWER_WAIT = 2000
local limits = {strikes = tonumber(ARGV[8]), losses = tonumber(ARGV[9])}
local job = load(id)

-- A message that is of no use, counted once however often this call is repeated.
local function drop(reason, answer)
  if redis.call('SET', P .. 'dropped:' .. nonce, reason, 'NX', 'PX', 60000) then total('dropped:' .. reason) end
  return answer or {reason}
end

if not job then return drop('unknown') end

local function granted(attempt)
  local more = redis.call('HMGET', key_job(id), 'request', 'created', 'revived')
  local left = job.deadline > 0 and int(math.max(0, job.deadline - NOW)) or ''
  local needed = is_on_trial(job, limits) and proof(job) or 0
  local answer = {'claimed', more[1], int(attempt), int(job.retries), int(needed), left, job.plain or '', job.tenant,
    int(NOW - (more[3] or more[2])), job.prompt_tokens > 0 and '1' or '0'}
  for _, entry in ipairs(redis.call('LRANGE', key_out(id), 0, -1)) do answer[#answer + 1] = entry end
  return answer
end

if has_ended(job) then return drop('ended', {'ended', job.state}) end
if job.state == 'running' and job.nonce == nonce then return granted(job.attempt) end
if job.state ~= 'dispatched' or job.dispatch ~= number then return drop('stale') end
if job.schema > READS then
  requeue(job, NOW + NEWER_WAIT)
  return drop('newer')
end
if job.deadline > 0 and job.deadline <= NOW then
  announce({finish(job, 'expired', tonumber(ARGV[6]), 'deadline', {'finish_reason', 'expired'})})
  return {'ended', 'expired'}
end
local info = redis.call('HMGET', key_worker(worker), 'draining', 'suspect', 'capacity', 'revision')
if info[1] == '1' or info[3] == '0' or not is_registered(worker) then
  requeue(job, NOW)
  return {info[1] == '1' and 'draining' or info[3] == '0' and 'unable' or 'unregistered'}
end
if is_suspect(job) then
  local other = info[2] and info[2] ~= id and load(info[2])
  if other and other.state == 'running' and other.worker == worker
      and not is_proven(other, redis.call('LLEN', key_out(other.id))) then
    -- One after the other, and not all at once again: each needs no longer than its first token takes.
    local taken_until = tonumber(redis.call('HGET', key_worker(worker), 'suspects_until') or 0)
    local turn = math.max(NOW, taken_until) + tonumber(ARGV[7])
    redis.call('HSET', key_worker(worker), 'suspects_until', int(turn))
    requeue(job, turn)
    return {'suspect'}
  end
  redis.call('HSET', key_worker(worker), 'suspect', id)
end
local lease = NOW + tonumber(ARGV[5])
leave(job)
if not job.revision or job.revision ~= info[4] then
  if redis.call('EXISTS', key_out(id)) == 1 then
    start_over(job)
    remember(job, {attempt = job.attempt, worker = '', started_at = NOW / 1000, ended_at = NOW / 1000, tokens = 0,
      reason = 'revision_changed'})
    total('restarted')
  end
  if info[4] then redis.call('HSET', key_job(id), 'revision', info[4]) end
end
redis.call('HSET', key_job(id), 'state', 'running', 'nonce', nonce, 'worker', worker, 'attempt', job.attempt + 1,
  'claimed', int(NOW), 'base', redis.call('LLEN', key_out(id)))
redis.call('HSETNX', key_job(id), 'started', int(NOW))
redis.call('ZADD', P .. 'running', lease, id)
redis.call('SADD', key_held(worker), id)
count(job.model, 'running', 1)
return granted(job.attempt + 1)
