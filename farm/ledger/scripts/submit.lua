-- Accept jobs: write each once and queue it. Repeating it changes nothing.
-- Touches: job:, queue:, lanes:, vtime:, vclock:, deadlines, counts:, totals, seq, wake, full.
-- ARGV, nine a job: id, fingerprint, model, tenant, priority, cost in tokens, deadline in ms from now or 0, plain-Celery
--   headers as JSON or '', request as JSON.
-- Returns one word a job: new, same (already there, equal request), conflict (already there, another request) or
--   full (not written: the server needs its last memory for jobs that it has).
local answer, fresh = {}, 0
for i = 1, #ARGV, 9 do
  local known = redis.call('HGET', key_job(ARGV[i]), 'fingerprint')
  answer[#answer + 1] = not known and 'new' or (known == ARGV[i + 1] and 'same' or 'conflict')
  if not known then fresh = fresh + 1 end
end
if fresh == 0 then return answer end
if redis.call('EXISTS', P .. 'full') == 1 then
  for n, word in ipairs(answer) do if word == 'new' then answer[n] = 'full' end end
  return answer
end
local seq = redis.call('INCRBY', P .. 'seq', fresh) - fresh
local now, accepted = int(NOW), 0
for n, word in ipairs(answer) do
  local i = 9 * n - 8
  local id = ARGV[i]
  -- The same id twice in one call: the second is a repetition.
  if word == 'new' and redis.call('EXISTS', key_job(id)) == 1 then
    answer[n] = redis.call('HGET', key_job(id), 'fingerprint') == ARGV[i + 1] and 'same' or 'conflict'
  elseif word == 'new' then
    seq, accepted = seq + 1, accepted + 1
    local job = {id = id, model = ARGV[i + 2], tenant = ARGV[i + 3], priority = ARGV[i + 4], seq = seq}
    redis.call('HSET', key_job(id), 'state', 'queued', 'fingerprint', ARGV[i + 1], 'model', job.model,
      'tenant', job.tenant, 'priority', job.priority, 'seq', int(seq), 'cost', ARGV[i + 5], 'created', now,
      'bytes', #ARGV[i + 8] + 200, 'request', ARGV[i + 8])
    if ARGV[i + 7] ~= '' then redis.call('HSET', key_job(id), 'plain', ARGV[i + 7]) end
    local deadline = tonumber(ARGV[i + 6])
    if deadline > 0 then
      redis.call('HSET', key_job(id), 'deadline', int(NOW + deadline))
      redis.call('ZADD', P .. 'deadlines', NOW + deadline, id)
    end
    count(job.model, 'queued', 1)
    put_in_queue(job)
  end
end
if accepted > 0 then total('submitted', accepted) end
wake()
return answer
