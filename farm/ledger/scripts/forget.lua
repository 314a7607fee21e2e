-- Forget jobs that have ended and that nobody will ask for any more. Dead ones stay: somebody is to look at them.
-- Repeating it changes nothing.
-- Touches: job:, out:, history:, jobs:, kept:, kept_oldest, kept_newest, kept_jobs, kept_bytes, kept_all, finished,
--   finished_bytes.
-- ARGV: tenant, then ids.
-- Returns how many there were.
local tenant, forgotten = ARGV[1], 0
for i = 2, #ARGV do
  local job = load(ARGV[i])
  if job and job.tenant == tenant and has_ended(job) and job.state ~= 'dead' and not job.plain and not job.webhook then
    redis.call('ZREM', key_jobs(tenant), job.id)
    strike_result(job)
    redis.call('DEL', key_job(job.id), key_out(job.id), key_history(job.id))
    forgotten = forgotten + 1
  end
end
return forgotten
