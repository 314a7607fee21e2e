-- Accept jobs, all of a call's or none, or each by itself: write each once and queue it. Repeating it changes nothing.
-- Touches: job:, queue:, lanes:, vtime:, vclock:, deadlines, counts:, depth:, totals, tally, seq, wake, full, limits,
--   waiting, waiting_jobs, waiting_tokens, jobs:, rate:.
-- ARGV: most jobs waiting in all, most jobs and most tokens of a tenant without limits of its own ('' for any number),
--   '1' for each by itself, what the caller has still to send after this call, which must fit too, as JSON
--   {tenant: [jobs, tokens]}, or '';
--   then ten a job: id, fingerprint, model, tenant, priority, cost in tokens, deadline in ms from now or 0,
--   plain-Celery headers as JSON or '', webhook as "receiver url" or '', request as JSON.
-- Returns one word a job: new, same (already there, equal request) or conflict (already there, another request).
--   Or a refusal: in the place of a word, or alone when all or none are wanted.
--   'full': the server needs its last memory for jobs that it has.
--   {limit's name, tenant or '', its value, how much of it is taken, how much more was asked for, ms until there may be
--   room}.
local HEAD, EACH = 5, 10
local is_full = redis.call('EXISTS', P .. 'full') == 1
local taken, most = tonumber(redis.call('GET', P .. 'waiting') or 0), tonumber(ARGV[1])

-- How long until so many jobs have gone, by how fast jobs of the model ended of late; within a minute.
local function until_gone(jobs, model)
  local rate = redis.call('HMGET', P .. 'rate:' .. model, 'at', 'per_s')
  local per_s = tonumber(rate[2] or 0) * math.exp(-(NOW - tonumber(rate[1] or NOW)) / 30000)
  return int(math.ceil(1000 * math.max(1, math.min(60, per_s > 1e-3 and jobs / per_s or 5))))
end

-- Why the farm has no room for so many jobs more, beside those of this call that it has let in; or nil.
local function crowded(jobs, let_in, model)
  local there = taken + let_in
  if not most or there + jobs <= most then return nil end
  return {'max_queued_jobs', '', int(most), int(there), int(jobs), until_gone(there + jobs - most, model)}
end

-- Why a tenant has no room for so much more, beside what this call has let in; or nil.
local function over(tenant, more, let_in, model)
  local limit = limits_of(tenant)
  local most_jobs, most_tokens = limit('queued_jobs', ARGV[2]), limit('queued_tokens', ARGV[3])
  local jobs = tonumber(redis.call('HGET', P .. 'waiting_jobs', tenant) or 0) + let_in.jobs
  local tokens = tonumber(redis.call('HGET', P .. 'waiting_tokens', tenant) or 0) + let_in.tokens
  if most_jobs and jobs + more.jobs > most_jobs then
    return {'queued_jobs', tenant, int(most_jobs), int(jobs), int(more.jobs),
      until_gone(jobs + more.jobs - most_jobs, model)}
  elseif most_tokens and tokens + more.tokens > most_tokens then
    local each = (tokens + more.tokens) / (jobs + more.jobs)
    return {'queued_tokens', tenant, int(most_tokens), int(tokens), int(more.tokens),
      until_gone((tokens + more.tokens - most_tokens) / each, model)}
  end
end

local NONE = {jobs = 0, tokens = 0}
local answer, seen, fresh, asked, models = {}, {}, {}, {}, {}
for i = HEAD + 1, #ARGV, EACH do
  local id, model, tenant, cost = ARGV[i], ARGV[i + 2], ARGV[i + 3], tonumber(ARGV[i + 5])
  -- The same id twice in one call: the second is a repetition.
  local known = seen[id] or redis.call('HGET', key_job(id), 'fingerprint')
  local word = not known and 'new' or (known == ARGV[i + 1] and 'same' or 'conflict')
  if word == 'new' and ARGV[4] == '1' then
    word = is_full and 'full' or over(tenant, {jobs = 1, tokens = cost}, asked[tenant] or NONE, model)
      or crowded(1, #fresh, model) or word
  end
  if word == 'new' then
    local sum = asked[tenant] or {jobs = 0, tokens = 0, listed = {}, model = model}
    sum.jobs, sum.tokens = sum.jobs + 1, sum.tokens + cost
    seen[id], asked[tenant], models[model] = ARGV[i + 1], sum, (models[model] or 0) + 1
    fresh[#fresh + 1] = i
  end
  answer[#answer + 1] = word
end
if #fresh == 0 then return answer end
if ARGV[4] ~= '1' then
  if is_full then return {'full'} end
  local rest = ARGV[5] ~= '' and cjson.decode(ARGV[5]) or {}
  local all = #fresh
  for _, more in pairs(rest) do all = all + more[1] end
  for tenant, sum in pairs(asked) do
    local more = rest[tenant] or {0, 0}
    local refused = over(tenant, {jobs = sum.jobs + more[1], tokens = sum.tokens + more[2]}, NONE, sum.model)
    if refused then return {refused} end
  end
  local refused = crowded(all, 0, ARGV[fresh[1] + 2])
  if refused then return {refused} end
end

local seq = redis.call('INCRBY', P .. 'seq', #fresh) - #fresh
local now = int(NOW)
for _, i in ipairs(fresh) do
  seq = seq + 1
  local job = {id = ARGV[i], model = ARGV[i + 2], tenant = ARGV[i + 3], priority = ARGV[i + 4], seq = seq}
  redis.call('HSET', key_job(job.id), 'state', 'queued', 'fingerprint', ARGV[i + 1], 'model', job.model,
    'tenant', job.tenant, 'priority', job.priority, 'seq', int(seq), 'cost', ARGV[i + 5], 'created', now,
    'schema', WRITES, 'bytes', #ARGV[i + 9] + 200, 'request', ARGV[i + 9])
  if ARGV[i + 7] ~= '' then redis.call('HSET', key_job(job.id), 'plain', ARGV[i + 7]) end
  if ARGV[i + 8] ~= '' then redis.call('HSET', key_job(job.id), 'webhook', ARGV[i + 8]) end
  local deadline = tonumber(ARGV[i + 6])
  if deadline > 0 then
    redis.call('HSET', key_job(job.id), 'deadline', int(NOW + deadline))
    redis.call('ZADD', P .. 'deadlines', NOW + deadline, job.id)
  end
  put_in_queue(job)
  waiting_at(job.model, job.priority, 1)
  local listed = asked[job.tenant].listed
  listed[#listed + 1] = seq
  listed[#listed + 1] = job.id
end
for model, jobs in pairs(models) do
  count(model, 'queued', jobs)
  tally('submitted', model, jobs)
end
for tenant, sum in pairs(asked) do
  waiting(tenant, sum.jobs, sum.tokens)
  redis.call('ZADD', key_jobs(tenant), unpack(sum.listed))
end
total('submitted', #fresh)
wake()
return answer
