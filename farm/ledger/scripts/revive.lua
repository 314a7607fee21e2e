-- Queue dead jobs again, each once: with no strikes or losses, at its old place, and a suspect until it gives a token.
-- Its tokens stay, so that it goes on from there, unless they are to be dropped. A deadline gets its whole span anew.
-- The tenant pays for what is generated from now on. It is let in whatever waits. Nobody's claim is good any more.
-- A repetition under the same token gets the same answer.
-- Touches: job:, out:, history:, dead, kept:, kept_oldest, kept_newest, kept_jobs, kept_bytes, kept_all, finished,
--   finished_bytes, undelivered, deadlines, queue:, lanes:, vtime:, vclock:, counts:, depth:, waiting, waiting_jobs,
--   waiting_tokens, totals, wake.
-- ARGV: token of this call, drop tokens 0|1, then ids.
-- Returns for each job: revived, else its state, or ''.
local token, is_fresh = ARGV[1], ARGV[2] == '1'

local function revive(job)
  local key = key_job(job.id)
  local seen = redis.call('HMGET', key, 'created', 'revived')
  redis.call('ZREM', P .. 'dead', job.id)
  redis.call('ZREM', P .. 'undelivered', job.id)
  strike_result(job)
  redis.call('HDEL', key, 'finished', 'error', 'nonce')
  redis.call('HSET', key, 'state', 'queued', 'strikes', '0', 'losses', '0', 'retries', '0', 'tries', '0',
    'charged', '0', 'not_before', int(NOW), 'probation', '1',
    'billed', is_fresh and 0 or redis.call('LLEN', key_out(job.id)), 'revived', int(NOW), 'revived_by', token)
  if is_fresh then start_over(job) end
  redis.call('PERSIST', key)
  redis.call('PERSIST', key_out(job.id))
  redis.call('PERSIST', key_history(job.id))
  if job.deadline > 0 then
    local deadline = NOW + job.deadline - tonumber(seen[2] or seen[1])
    redis.call('HSET', key, 'deadline', int(deadline))
    redis.call('ZADD', P .. 'deadlines', deadline, job.id)
  end
  remember(job, {attempt = job.attempt, worker = '', started_at = NOW / 1000, ended_at = NOW / 1000, tokens = 0,
    reason = is_fresh and 'restarted_by_hand' or 'retried_by_hand'})
  count(job.model, 'queued', 1)
  waiting(job.tenant, 1, job.cost)
  waiting_at(job.model, job.priority, 1)
  put_in_queue(job)
end

local answer, revived = {}, 0
for i = 3, #ARGV do
  local job = load(ARGV[i])
  local word = job and job.state or ''
  if job and redis.call('HGET', key_job(job.id), 'revived_by') == token then
    word = 'revived'
  elseif word == 'dead' then
    revive(job)
    word, revived = 'revived', revived + 1
  end
  answer[#answer + 1] = word
end
if revived > 0 then
  total('revived', revived)
  wake()
end
return answer
