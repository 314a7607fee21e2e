-- Delete dead jobs now rather than at their retention. A repetition finds nothing left to do.
-- Touches: job:, out:, history:, dead, kept:, kept_oldest, kept_newest, kept_jobs, kept_bytes, kept_all, finished,
--   finished_bytes, undelivered, jobs:.
-- ARGV: latest end in ms (one that was retried and died after it stays), then ids.
-- Returns for each job: purged, else its state, or ''.
local answer = {}
for i = 2, #ARGV do
  local job = load(ARGV[i])
  local word = job and job.state or ''
  if word == 'dead' and tonumber(redis.call('ZSCORE', P .. 'dead', job.id) or 0) <= tonumber(ARGV[1]) then
    redis.call('ZREM', P .. 'dead', job.id)
    redis.call('ZREM', P .. 'undelivered', job.id)
    strike_result(job)
    redis.call('ZREM', key_jobs(job.tenant), job.id)
    redis.call('DEL', key_job(job.id), key_out(job.id), key_history(job.id))
    word = 'purged'
  end
  answer[#answer + 1] = word
end
return answer
