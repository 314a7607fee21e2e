-- Hand running jobs back. A repetition changes nothing, since the jobs are no longer running.
-- Touches: job:, out:, running, held:, worker:, delayed, queue:, lanes:, counts:, waiting, waiting_jobs,
--   waiting_tokens, totals, and what an end touches.
-- ARGV: worker, kind, drain 0|1, reason, wait ms, retention ms, most strikes, most losses, most retries, error as JSON,
--   then id and nonce of each job.
--   kind: drain (nobody's fault), retry (counts as a retry, ends as failed after the last), lost (the engine
--   died: strikes).
-- Returns one word a job: its state afterwards, or lost.
local worker, kind, reason = ARGV[1], ARGV[2], ARGV[4]
local limits = {retention = tonumber(ARGV[6]), strikes = tonumber(ARGV[7]), losses = tonumber(ARGV[8])}
if ARGV[3] == '1' and is_registered(worker) then
  redis.call('HSET', key_worker(worker), 'draining', '1')
end
local jobs, answer, lines, listed = {}, {}, {}, {}
for i = 11, #ARGV, 2 do
  local job = not listed[ARGV[i]] and load(ARGV[i])
  if job and job.state == 'running' and job.nonce == ARGV[i + 1] then
    jobs[#jobs + 1] = job
    listed[ARGV[i]] = true
  end
end
if kind == 'lost' then
  lines = lose(jobs, reason, limits)
else
  for _, job in ipairs(jobs) do
    if kind == 'retry' and job.retries >= tonumber(ARGV[9]) then
      lines[#lines + 1] = finish(job, 'failed', limits.retention, reason, {'error', ARGV[10]})
    else
      record_attempt(job, reason)
      total('released:' .. reason)
      if kind == 'retry' then
        total('retried')
        redis.call('HINCRBY', key_job(job.id), 'retries', 1)
      end
      requeue(job, NOW + tonumber(ARGV[5]))
    end
  end
end
announce(lines)
for i = 11, #ARGV, 2 do
  local seen = redis.call('HMGET', key_job(ARGV[i]), 'state', 'nonce')
  answer[#answer + 1] = seen[2] == ARGV[i + 1] and seen[1] or 'lost'
end
return answer
