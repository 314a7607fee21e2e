-- Shared by all scripts: names of keys, the clock, and the moves between states. Prepended to each of them.
--
-- KEYS[1] is the prefix; every other key is built from it. A script reads and checks first, writes last, and raises
-- nothing after its first write. A job is in exactly one place for its state:
--   queued      queue:<model>:<priority>:<tenant>, or delayed        counts.queued       waiting
--   dispatched  dispatched                                           counts.dispatched   waiting
--   running     running, held:<worker>                               counts.running
--   ended       finished (and dead)
local P = KEYS[1]
local clock = redis.call('TIME')
local NOW = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local LEVELS = {'high', 'normal', 'low'}
local PROOF = 16        -- tokens that clear a job of its losses
local LOSSES_SUSPECT = 3 -- losses in a row that make a job a suspect
local PIECE = 1000      -- values that one unpack may hold; Lua refuses about 8,000
local WRITES, READS = 2, 2 -- schemas; as in farm/schema.py

local function int(n) return string.format('%.0f', n) end
local function key_job(id) return P .. 'job:' .. id end
local function key_out(id) return P .. 'out:' .. id end
local function key_history(id) return P .. 'history:' .. id end
local function key_queue(job) return P .. 'queue:' .. job.model .. ':' .. job.priority .. ':' .. job.tenant end
local function key_lanes(model, level) return P .. 'lanes:' .. model .. ':' .. level end
local function key_worker(worker) return P .. 'worker:' .. worker end
local function key_held(worker) return P .. 'held:' .. worker end
local function key_jobs(tenant) return P .. 'jobs:' .. tenant end
local function key_usage(tenant, day) return P .. 'usage:' .. tenant .. ':' .. day end
local function key_hooks(lane) return P .. 'hooks:' .. lane end
local function key_hook_lanes(tenant) return P .. 'hook_lanes:' .. tenant end
local function key_batch(id) return P .. 'batch:' .. id end
local function key_parts(id) return P .. 'batch_parts:' .. id end
local function key_batches(tenant) return P .. 'batches:' .. tenant end
local function key_file(id) return P .. 'file:' .. id end
local function key_files(tenant) return P .. 'files:' .. tenant end

-- The fields of a job that moves between states need, or nil when there is no such job.
local FIELDS = {'state', 'model', 'priority', 'tenant', 'seq', 'nonce', 'attempt', 'worker', 'base', 'strikes', 'losses',
  'retries', 'dispatch', 'claimed', 'cost', 'charged', 'deadline', 'plain', 'bytes', 'prompt_tokens', 'tries', 'not_before',
  'probation', 'billed', 'webhook', 'schema', 'revision'}
local function load(id)
  local values = redis.call('HMGET', key_job(id), unpack(FIELDS))
  if not values[1] then return nil end
  local job = {id = id}
  for i, name in ipairs(FIELDS) do job[name] = values[i] or nil end
  for _, name in ipairs({'seq', 'attempt', 'base', 'strikes', 'losses', 'retries', 'dispatch', 'claimed', 'cost',
      'charged', 'deadline', 'bytes', 'prompt_tokens', 'tries', 'not_before', 'billed'}) do
    job[name] = tonumber(job[name] or 0)
  end
  job.schema = tonumber(job.schema or 1) or READS + 1 -- what is no number is nothing that we know
  return job
end

local function has_ended(job)
  return job.state ~= 'queued' and job.state ~= 'dispatched' and job.state ~= 'running'
end

local function count(model, state, delta) redis.call('HINCRBY', P .. 'counts:' .. model, state, delta) end

-- Count jobs that wait for their turn at a priority of a model.
local function waiting_at(model, priority, jobs) redis.call('HINCRBY', P .. 'depth:' .. model, priority, jobs) end

-- Count jobs and tokens that wait for their turn: all jobs, and a tenant's. A tenant without any is forgotten.
local function waiting(tenant, jobs, tokens)
  if redis.call('INCRBY', P .. 'waiting', jobs) < 0 then redis.call('SET', P .. 'waiting', '0') end
  if redis.call('HINCRBY', P .. 'waiting_jobs', tenant, jobs) <= 0 then
    redis.call('HDEL', P .. 'waiting_jobs', tenant)
    redis.call('HDEL', P .. 'waiting_tokens', tenant)
  else
    redis.call('HINCRBY', P .. 'waiting_tokens', tenant, tokens)
  end
end

-- A function that tells a tenant's limits by name: its own, else the settings' as text; nil for none.
local function limits_of(tenant)
  local own = redis.call('HGET', P .. 'limits', tenant)
  own = own and cjson.decode(own) or {}
  return function(name, default)
    if own[name] == nil then return tonumber(default) end
    return own[name] ~= cjson.null and own[name] or nil
  end
end

local function total(name, delta) redis.call('HINCRBY', P .. 'totals', name, delta or 1) end
local function tally(what, model, delta) redis.call('HINCRBY', P .. 'tally', what .. ':' .. model, delta or 1) end
local function is_registered(worker) return redis.call('HEXISTS', key_worker(worker), 'name') == 1 end

-- Append token entries ARGV[first..last]; returns their bytes.
local function append(id, first, last)
  local size, length = 0, 0
  for k = first, last do size = size + #ARGV[k] end
  for k = first, last, PIECE do
    length = redis.call('RPUSH', key_out(id), unpack(ARGV, k, math.min(k + PIECE - 1, last)))
  end
  if length == last - first + 1 then redis.call('HSETNX', key_job(id), 'first_token', int(NOW)) end
  return size
end

local function wake() if redis.call('LLEN', P .. 'wake') == 0 then redis.call('RPUSH', P .. 'wake', '1') end end

-- Tell waiters: one line per job, "id tokens state".
local function announce(lines)
  if #lines > 0 then
    redis.call('XADD', P .. 'events', 'MAXLEN', '~', '10000', '*', 'j', table.concat(lines, '\n'))
  end
end

local function vtime(model, tenant) return tonumber(redis.call('HGET', P .. 'vtime:' .. model, tenant) or 0) end

local function set_vtime(model, tenant, value)
  local text = string.format('%.3f', value)
  redis.call('HSET', P .. 'vtime:' .. model, tenant, text)
  for _, level in ipairs(LEVELS) do redis.call('ZADD', key_lanes(model, level), 'XX', text, tenant) end
end

local function charge(job, tokens)
  local weight = tonumber(redis.call('HGET', P .. 'weights', job.tenant) or 1)
  set_vtime(job.model, job.tenant, math.max(0, vtime(job.model, job.tenant) + tokens / weight))
end

-- Give up a job's tokens: it begins anew. Whoever has read some of them finds out by the number of restarts.
local function start_over(job)
  local key = key_job(job.id)
  redis.call('DEL', key_out(job.id))
  redis.call('HDEL', key, 'first_token', 'revision')
  redis.call('HSET', key, 'base', '0', 'bytes', redis.call('HSTRLEN', key, 'request') + 200)
  redis.call('HINCRBY', key, 'restarts', 1)
  job.base, job.revision = 0, nil
end

-- Whether the ledger has been written in a schema that these scripts don't know.
local function is_beyond_us() return tonumber(redis.call('GET', P .. 'schema') or 1) > READS end

-- What a tenant is charged for jobs that have not ended, and may get back in part.
local function owe(job, tokens)
  local key = P .. 'owed:' .. job.model
  if redis.call('HINCRBY', key, job.tenant, int(tokens)) <= 0 then redis.call('HDEL', key, job.tenant) end
end

-- Where a tenant starts that opens a queue. While it waits at high or normal it keeps its time. Else it starts level with
-- the first in that lane, or with the latest dispatch if that is earlier: idleness earns nothing, and a tenant that runs
-- ahead at high priority pushes nobody back. Waiting at low does not count, or one idle low job would earn credit.
local function starting_time(job)
  local own = vtime(job.model, job.tenant)
  for _, level in ipairs({'high', 'normal'}) do
    if redis.call('ZSCORE', key_lanes(job.model, level), job.tenant) then return own end
  end
  local start = tonumber(redis.call('GET', P .. 'vclock:' .. job.model) or 0)
  local first = redis.call('ZRANGE', key_lanes(job.model, job.priority), 0, 0, 'WITHSCORES')
  if first[2] then start = math.min(start, tonumber(first[2])) end
  return math.max(own, start)
end

-- Into its tenant's queue at its old place.
local function put_in_queue(job)
  local queue = key_queue(job)
  if redis.call('EXISTS', queue) == 0 then
    local start = starting_time(job)
    redis.call('ZADD', key_lanes(job.model, job.priority), start, job.tenant)
    set_vtime(job.model, job.tenant, start)
  end
  redis.call('ZADD', queue, job.seq, job.id)
end

local function take_from_queue(job)
  local queue = key_queue(job)
  redis.call('ZREM', queue, job.id)
  if redis.call('EXISTS', queue) == 0 then redis.call('ZREM', key_lanes(job.model, job.priority), job.tenant) end
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

-- A model's pace by its latest hundred or so jobs: what they gained, for how long they held a slot, and what they were
-- charged for. One that went on from an earlier attempt is charged for what it gained, as if it had started there.
local function measure(rate, job, tokens)
  local gained = tokens - job.base
  local old = redis.call('HMGET', rate, 'jobs', 'tokens', 'slot_ms', 'cost')
  local function add(n, value) return string.format('%.3f', tonumber(old[n] or 0) * 0.99 + value) end
  redis.call('HSET', rate, 'jobs', add(1, 1), 'tokens', add(2, gained), 'slot_ms', add(3, NOW - job.claimed),
    'cost', add(4, math.max(1, job.cost * gained / math.max(1, tokens))))
end

-- The date in UTC, as 2026-11-23 (days to civil dates: Howard Hinnant, chrono-compatible low-level date algorithms).
local function today()
  local floor = math.floor
  local z = floor(NOW / 86400000) + 719468
  local era = floor(z / 146097)
  local of_era = z - era * 146097
  local year = floor((of_era - floor(of_era / 1460) + floor(of_era / 36524) - floor(of_era / 146096)) / 365)
  local of_year = of_era - (365 * year + floor(year / 4) - floor(year / 100))
  local march = floor((5 * of_year + 2) / 153)
  local month = march < 10 and march + 3 or march - 9
  return string.format('%04d-%02d-%02d', year + era * 400 + (month <= 2 and 1 or 0), month,
    of_year - floor((153 * march + 2) / 5) + 1)
end

-- What a job took, on its tenant's account of the day that it ends, and on its model's for good.
local function account(job, state, tokens)
  local day = today()
  local prompt_tokens = math.max(0, job.prompt_tokens)
  tally(state, job.model)
  for what, count in pairs({prompt = prompt_tokens, completion = tokens, resumed = job.base}) do
    if count > 0 then tally(what, job.model, count) end
  end
  if prompt_tokens + tokens > 0 then
    -- No tenant's name holds a bracket.
    redis.call('ZINCRBY', P .. 'spent:' .. day, prompt_tokens + tokens, '(all)')
    redis.call('ZINCRBY', P .. 'spent:' .. day, prompt_tokens + tokens, job.tenant)
    redis.call('EXPIRE', P .. 'spent:' .. day, 172800)
  end
  local key = key_usage(job.tenant, day)
  if redis.call('HINCRBY', key, state, 1) == 1 then
    local ttl = 86400 * tonumber(redis.call('GET', P .. 'usage_days') or 400)
    redis.call('EXPIRE', key, ttl)
    redis.call('SADD', P .. 'used:' .. day, job.tenant)
    redis.call('EXPIRE', P .. 'used:' .. day, ttl)
  end
  if job.prompt_tokens > 0 then redis.call('HINCRBY', key, 'prompt_tokens', job.prompt_tokens) end
  if tokens > 0 then redis.call('HINCRBY', key, 'completion_tokens', tokens) end
  if job.base > 0 then redis.call('HINCRBY', key, 'resumed_tokens', job.base) end
end

-- Have a lane of webhooks looked at from a time on, in its tenant's turn. The sweep comes by a minute later.
local SWEEP = 60000
local function list_lane(lane, tenant, at)
  redis.call('ZADD', key_hook_lanes(tenant), 'LT', at, lane)
  redis.call('ZADD', P .. 'hook_tenants', 'LT', at, tenant)
  redis.call('ZADD', P .. 'webhooks', 'LT', at + SWEEP, lane)
end

-- Strike a lane off the lists if nothing is left in it.
local function strike_lane(lane, tenant)
  if redis.call('EXISTS', key_hooks(lane)) == 1 then return end
  redis.call('ZREM', P .. 'webhooks', lane)
  redis.call('ZREM', key_hook_lanes(tenant), lane)
  if redis.call('EXISTS', key_hook_lanes(tenant)) == 0 then redis.call('ZREM', P .. 'hook_tenants', tenant) end
end

-- Have an end told to a webhook, "receiver url", from now on. key: that of the job or batch.
local function tell(key, tenant, webhook)
  local lane = tenant .. ':' .. string.match(webhook, '^%S+')
  redis.call('HSET', key, 'hook_state', 'pending', 'hook_tries', '0')
  redis.call('HINCRBY', key, 'hook_event', 1)
  local is_new = redis.call('ZADD', key_hooks(lane), NOW, string.sub(key, #P + 1))
  redis.call('INCRBY', P .. 'hooks_waiting', is_new)
  list_lane(lane, tenant, NOW)
end

-- The one way into a terminal state. Returns the line to announce.
local function finish(job, state, retention, reason, fields)
  local tokens = redis.call('LLEN', key_out(job.id))
  local gained = math.max(0, tokens - job.billed) -- since its tenant last paid: it was dead and revived
  if job.state == 'running' and not job.recorded then record_attempt(job, reason) end
  leave(job)
  local was_claimed = job.attempt > 0
  redis.call('HSET', key_job(job.id), 'state', state, 'finished', int(NOW), 'bytes', int(job.bytes), unpack(fields))
  if job.charged > 0 then
    charge(job, (job.prompt_tokens > 0 and job.prompt_tokens or 0) + gained - job.charged)
    owe(job, -job.charged)
  end
  redis.call('ZREM', P .. 'deadlines', job.id)
  local bytes = int(job.bytes)
  if redis.call('ZADD', P .. 'finished', NOW, job.id .. '|' .. bytes .. '|' .. job.tenant) == 1 then
    redis.call('INCRBY', P .. 'finished_bytes', bytes)
  end
  account(job, state, gained)
  if state == 'dead' then redis.call('ZADD', P .. 'dead', NOW, job.id) end
  if job.webhook then tell(key_job(job.id), job.tenant, job.webhook) end
  if job.plain then redis.call('ZADD', P .. 'undelivered', NOW + (reason == 'finish' and 5000 or 0), job.id) end
  -- The upkeep removes them at their retention; the TTL is for a farm that no longer has a keeper.
  local ttl = retention + 3600000
  redis.call('PEXPIRE', key_job(job.id), ttl)
  redis.call('PEXPIRE', key_out(job.id), ttl)
  redis.call('PEXPIRE', key_history(job.id), ttl)
  total(state)
  if was_claimed then
    local rate = P .. 'rate:' .. job.model
    local last = tonumber(redis.call('HGET', rate, 'at') or NOW)
    local old = tonumber(redis.call('HGET', rate, 'per_s') or 0)
    local keep = math.exp(-(NOW - last) / 30000)
    redis.call('HSET', rate, 'at', int(NOW), 'per_s', string.format('%.6f', old * keep + 1 / 30))
    if state == 'succeeded' then measure(rate, job, tokens) end
  end
  wake()
  job.state = state
  return job.id .. ' ' .. tokens .. ' ' .. state
end

-- Whether a job may be what took its worker down, and how many new tokens clear it. On probation: it was dead.
local function is_suspect(job) return job.strikes > 0 or job.losses >= LOSSES_SUSPECT or job.probation == '1' end
local function proof(job) return job.losses >= LOSSES_SUSPECT and PROOF or 1 end
local function is_proven(job, tokens) return tokens - job.base >= proof(job) end

-- Whether its next loss may be its last. Then a worker has it run alone.
local function is_on_trial(job, limits)
  return is_suspect(job) and (job.strikes >= limits.strikes - 1 or job.losses >= limits.losses - 1)
end

-- A worker or engine died with these running jobs aboard. An unproven suspect is struck alone; without one, every job
-- with no new token is. All that got little further have a loss more, or who kills every few tokens could hide behind
-- suspects. A job is dead only for a loss that nobody else aboard can have caused: the others were proven. A worker that
-- lives and lost a job (is_alive: a claim whose answer never came) strikes nobody. Returns lines to announce.
local function lose(jobs, reason, limits, is_alive)
  local lines, blamed, young = {}, false, 0
  for _, job in ipairs(jobs) do
    job.tokens = redis.call('LLEN', key_out(job.id))
    job.gained = job.tokens - job.base
    job.unproven = is_suspect(job) and not is_proven(job, job.tokens)
    blamed = blamed or job.unproven
    if job.gained < PROOF then young = young + 1 end
  end
  for _, job in ipairs(jobs) do
    local is_young = job.gained < PROOF
    local is_sure = young == (is_young and 1 or 0)
    job.losses = is_young and job.losses + 1 or 0
    if not is_alive and (not blamed or job.unproven) then
      job.strikes = job.gained == 0 and job.strikes + 1 or 0
    end
    if not is_sure then
      job.strikes = math.min(job.strikes, math.max(1, limits.strikes - 1))
      job.losses = math.min(job.losses, math.max(LOSSES_SUSPECT, limits.losses - 1))
    end
    redis.call('HSET', key_job(job.id), 'strikes', job.strikes, 'losses', job.losses)
    record_attempt(job, reason)
    if is_sure and (job.strikes >= limits.strikes or job.losses >= limits.losses) then
      local why = job.strikes >= limits.strikes
        and ('its worker or engine died ' .. job.strikes .. ' times before it gave a token')
        or ('its worker or engine died ' .. job.losses .. ' times in a row')
      job.recorded = true
      lines[#lines + 1] = finish(job, 'dead', limits.retention, reason,
        {'error', cjson.encode({code = 'job_dead', message = why, retryable = false})})
    else
      total('released:' .. reason)
      requeue(job, NOW)
    end
  end
  return lines
end

-- Every call of a worker or keeper is a beat. After a silence of the server all leases get one lease's time.
local function beat(stall, lease)
  local last = tonumber(redis.call('GET', P .. 'beat') or NOW)
  if NOW - last > stall then redis.call('SET', P .. 'grace', int(NOW + lease)) end
  redis.call('SET', P .. 'beat', int(NOW))
end
