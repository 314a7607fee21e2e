-- End a job: the one write of its outcome. A repetition gets the same answer. It counts from the latest claimer even
-- after its lease ended, as long as nobody else has claimed.
-- Touches: job:, out:, running, worker:, and what an end touches.
-- ARGV: id, nonce, state, index of the first entry, prompt tokens, retention ms, number of entries, the entries, then
--   fields and values of the outcome.
-- Returns {'ok'}, {'gap', tokens kept} or {'lost', state}.
local id, nonce, state, from, n = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[7])
local job = load(id)
if not job then return {'lost', 'unknown'} end
if job.nonce ~= nonce then return {'lost', job.state} end
if has_ended(job) then
  return redis.call('HGET', key_job(id), 'closed_by') == nonce and {'ok'} or {'lost', job.state}
end
local have = redis.call('LLEN', key_out(id))
if from > have then return {'gap', have} end
local first, last = 8 + (have - from), 7 + n
if first <= last then
  job.bytes = job.bytes + append(id, first, last)
  if is_registered(job.worker) then redis.call('HINCRBY', key_worker(job.worker), 'tokens', last - first + 1) end
end
local fields = {'closed_by', nonce, 'prompt_tokens', ARGV[5], 'resumed', int(job.base)}
for k = 8 + n, #ARGV do fields[#fields + 1] = ARGV[k] end
job.prompt_tokens = tonumber(ARGV[5])
announce({finish(job, state, tonumber(ARGV[6]), 'finish', fields)})
return {'ok'}
