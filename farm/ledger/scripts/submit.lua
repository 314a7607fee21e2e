-- Accept jobs, all of a call's or none: write each once and queue it. Repeating it changes nothing.
-- Touches: job:, queue:, lanes:, vtime:, vclock:, deadlines, counts:, totals, seq, wake, full, limits, waiting,
--   waiting_jobs, waiting_tokens, jobs:, rate:.
-- ARGV: most jobs waiting in all, most jobs and most tokens of a tenant without limits of its own ('' for any number),
--   what the caller has still to send after this call, which must fit too, as JSON {tenant: [jobs, tokens]}, or '';
--   then nine a job: id, fingerprint, model, tenant, priority, cost in tokens, deadline in ms from now or 0,
--   plain-Celery headers as JSON or '', request as JSON.
-- Returns one word a job: new, same (already there, equal request) or conflict (already there, another request).
--   Or why none was written: {'full'}, the server needs its last memory for jobs that it has; or {'limit', its name,
--   tenant or '', its value, how much of it is taken, how much more was asked for, ms until there may be room}.
local HEAD, EACH = 4, 9
local answer, seen, fresh, asked, models = {}, {}, {}, {}, {}
for i = HEAD + 1, #ARGV, EACH do
  local id = ARGV[i]
  -- The same id twice in one call: the second is a repetition.
  local known = seen[id] or redis.call('HGET', key_job(id), 'fingerprint')
  answer[#answer + 1] = not known and 'new' or (known == ARGV[i + 1] and 'same' or 'conflict')
  if not known then
    seen[id] = ARGV[i + 1]
    fresh[#fresh + 1] = i
    local model, tenant = ARGV[i + 2], ARGV[i + 3]
    local sum = asked[tenant] or {jobs = 0, tokens = 0, listed = {}}
    sum.jobs, sum.tokens = sum.jobs + 1, sum.tokens + tonumber(ARGV[i + 5])
    asked[tenant] = sum
    models[model] = (models[model] or 0) + 1
  end
end
if #fresh == 0 then return answer end
if redis.call('EXISTS', P .. 'full') == 1 then return {'full'} end

-- How long until so many jobs have gone, by how fast jobs of the first one's model ended of late; within a minute.
local function until_gone(jobs)
  local rate = redis.call('HMGET', P .. 'rate:' .. ARGV[fresh[1] + 2], 'at', 'per_s')
  local per_s = tonumber(rate[2] or 0) * math.exp(-(NOW - tonumber(rate[1] or NOW)) / 30000)
  return int(math.ceil(1000 * math.max(1, math.min(60, per_s > 1e-3 and jobs / per_s or 5))))
end

local rest = ARGV[4] ~= '' and cjson.decode(ARGV[4]) or {}
local all = #fresh
for _, more in pairs(rest) do all = all + more[1] end
local taken = tonumber(redis.call('GET', P .. 'waiting') or 0)
local most = tonumber(ARGV[1])
if most and taken + all > most then
  return {'limit', 'max_queued_jobs', '', int(most), int(taken), int(all), until_gone(taken + all - most)}
end
for tenant, sum in pairs(asked) do
  local limit, more = limits_of(tenant), rest[tenant] or {0, 0}
  local jobs = tonumber(redis.call('HGET', P .. 'waiting_jobs', tenant) or 0)
  local tokens = tonumber(redis.call('HGET', P .. 'waiting_tokens', tenant) or 0)
  local most_jobs, most_tokens = limit('queued_jobs', ARGV[2]), limit('queued_tokens', ARGV[3])
  local new_jobs, new_tokens = sum.jobs + more[1], sum.tokens + more[2]
  if most_jobs and jobs + new_jobs > most_jobs then
    return {'limit', 'queued_jobs', tenant, int(most_jobs), int(jobs), int(new_jobs),
      until_gone(jobs + new_jobs - most_jobs)}
  elseif most_tokens and tokens + new_tokens > most_tokens then
    local each = (tokens + new_tokens) / (jobs + new_jobs)
    return {'limit', 'queued_tokens', tenant, int(most_tokens), int(tokens), int(new_tokens),
      until_gone((tokens + new_tokens - most_tokens) / each)}
  end
end

local seq = redis.call('INCRBY', P .. 'seq', #fresh) - #fresh
local now = int(NOW)
for _, i in ipairs(fresh) do
  seq = seq + 1
  local job = {id = ARGV[i], model = ARGV[i + 2], tenant = ARGV[i + 3], priority = ARGV[i + 4], seq = seq}
  redis.call('HSET', key_job(job.id), 'state', 'queued', 'fingerprint', ARGV[i + 1], 'model', job.model,
    'tenant', job.tenant, 'priority', job.priority, 'seq', int(seq), 'cost', ARGV[i + 5], 'created', now,
    'bytes', #ARGV[i + 8] + 200, 'request', ARGV[i + 8])
  if ARGV[i + 7] ~= '' then redis.call('HSET', key_job(job.id), 'plain', ARGV[i + 7]) end
  local deadline = tonumber(ARGV[i + 6])
  if deadline > 0 then
    redis.call('HSET', key_job(job.id), 'deadline', int(NOW + deadline))
    redis.call('ZADD', P .. 'deadlines', NOW + deadline, job.id)
  end
  put_in_queue(job)
  local listed = asked[job.tenant].listed
  listed[#listed + 1] = seq
  listed[#listed + 1] = job.id
end
for model, jobs in pairs(models) do count(model, 'queued', jobs) end
for tenant, sum in pairs(asked) do
  waiting(tenant, sum.jobs, sum.tokens)
  redis.call('ZADD', key_jobs(tenant), unpack(sum.listed))
end
total('submitted', #fresh)
wake()
return answer
