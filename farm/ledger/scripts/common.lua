-- Shared by all scripts: names of keys, the clock, and the moves between states. Prepended to each of them.
--
-- KEYS[1] is the prefix; every other key is built from it. A script reads and checks first, writes last, and raises
-- nothing after its first write. A job is in exactly one place for its state:
--   queued      queue:<model>:<priority>:<tenant>, or delayed        counts.queued
--   dispatched  dispatched                                           counts.dispatched
--   running     running, held:<worker>                               counts.running
--   ended       finished (and dead)
local P = KEYS[1]
local clock = redis.call('TIME')
local NOW = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local LEVELS = {'high', 'normal', 'low'}
local PROOF = 16        -- tokens that clear a job of its losses
local LOSSES_SUSPECT = 3 -- losses in a row that make a job a suspect
local PIECE = 1000      -- values that one unpack may hold; Lua refuses about 8,000

local function int(n) return string.format('%.0f', n) end
local function key_job(id) return P .. 'job:' .. id end
local function key_out(id) return P .. 'out:' .. id end
local function key_history(id) return P .. 'history:' .. id end
local function key_queue(job) return P .. 'queue:' .. job.model .. ':' .. job.priority .. ':' .. job.tenant end
local function key_lanes(model, level) return P .. 'lanes:' .. model .. ':' .. level end
local function key_worker(worker) return P .. 'worker:' .. worker end
local function key_held(worker) return P .. 'held:' .. worker end

-- The fields of a job that moves between states need, or nil when there is no such job.
local FIELDS = {'state', 'model', 'priority', 'tenant', 'seq', 'nonce', 'attempt', 'worker', 'base', 'strikes', 'losses',
  'retries', 'dispatch', 'claimed', 'cost', 'charged', 'deadline', 'plain', 'bytes', 'prompt_tokens', 'tries', 'not_before',
  'probation'}
local function load(id)
  local values = redis.call('HMGET', key_job(id), unpack(FIELDS))
  if not values[1] then return nil end
  local job = {id = id}
  for i, name in ipairs(FIELDS) do job[name] = values[i] or nil end
  for _, name in ipairs({'seq', 'attempt', 'base', 'strikes', 'losses', 'retries', 'dispatch', 'claimed', 'cost',
      'charged', 'deadline', 'bytes', 'prompt_tokens', 'tries', 'not_before'}) do
    job[name] = tonumber(job[name] or 0)
  end
  return job
end

local function has_ended(job)
  return job.state ~= 'queued' and job.state ~= 'dispatched' and job.state ~= 'running'
end

local function count(model, state, delta) redis.call('HINCRBY', P .. 'counts:' .. model, state, delta) end
local function total(name, delta) redis.call('HINCRBY', P .. 'totals', name, delta or 1) end
local function is_registered(worker) return redis.call('HEXISTS', key_worker(worker), 'name') == 1 end

-- Append token entries ARGV[first..last]; returns their bytes.
local function append(id, first, last)
  local size = 0
  for k = first, last do size = size + #ARGV[k] end
  for k = first, last, PIECE do
    redis.call('RPUSH', key_out(id), unpack(ARGV, k, math.min(k + PIECE - 1, last)))
  end
  redis.call('HSETNX', key_job(id), 'first_token', int(NOW))
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

-- Out of the place that its state has it in.
local function leave(job)
  if job.state == 'queued' then
    if redis.call('ZREM', P .. 'delayed', job.id) == 0 then take_from_queue(job) end
  elseif job.state == 'dispatched' then
    redis.call('ZREM', P .. 'dispatched', job.id)
  elseif job.state == 'running' then
    redis.call('ZREM', P .. 'running', job.id)
    redis.call('SREM', key_held(job.worker), job.id)
  end
  count(job.model, job.state, -1)
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
  leave(job)
  job.state = 'queued'
  redis.call('HSET', key_job(job.id), 'state', 'queued', 'not_before', int(not_before), 'tries', '0')
  count(job.model, 'queued', 1)
  if not_before > NOW then redis.call('ZADD', P .. 'delayed', not_before, job.id) else put_in_queue(job) end
  wake()
end

-- The one way into a terminal state. Returns the line to announce.
local function finish(job, state, retention, reason, fields)
  local tokens = redis.call('LLEN', key_out(job.id))
  if job.state == 'running' and not job.recorded then record_attempt(job, reason) end
  leave(job)
  local was_claimed = job.attempt > 0
  redis.call('HSET', key_job(job.id), 'state', state, 'finished', int(NOW), unpack(fields))
  if job.charged > 0 then
    charge(job, (job.prompt_tokens > 0 and job.prompt_tokens or 0) + tokens - job.charged)
    owe(job, -job.charged)
  end
  redis.call('ZREM', P .. 'deadlines', job.id)
  local bytes = int(job.bytes)
  if redis.call('ZADD', P .. 'finished', NOW, job.id .. '|' .. bytes) == 1 then
    redis.call('INCRBY', P .. 'finished_bytes', bytes)
  end
  if state == 'dead' then redis.call('ZADD', P .. 'dead', NOW, job.id) end
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
  end
  wake()
  job.state = state
  return job.id .. ' ' .. tokens .. ' ' .. state
end

-- Whether a job may be what took its worker down, and whether this attempt has cleared it. On probation: it was dead.
local function is_suspect(job) return job.strikes > 0 or job.losses >= LOSSES_SUSPECT or job.probation == '1' end
local function is_proven(job, tokens)
  return tokens - job.base >= (job.losses >= LOSSES_SUSPECT and PROOF or 1)
end

-- A worker or engine died with these running jobs aboard. An unproven suspect takes the blame alone; without one, every
-- job with no new token is struck. A worker that lives and lost a job (is_alive: a claim whose answer never came) counts
-- as a loss, and strikes nobody. Returns lines to announce.
local function lose(jobs, reason, limits, is_alive)
  local lines, blamed = {}, false
  for _, job in ipairs(jobs) do
    job.tokens = redis.call('LLEN', key_out(job.id))
    job.unproven = is_suspect(job) and not is_proven(job, job.tokens)
    blamed = blamed or job.unproven
  end
  for _, job in ipairs(jobs) do
    local gained = job.tokens - job.base
    if is_alive then
      job.losses = gained < PROOF and job.losses + 1 or 0
    elseif not blamed or job.unproven then
      job.losses = gained < PROOF and job.losses + 1 or 0
      job.strikes = gained == 0 and job.strikes + 1 or 0
    end
    redis.call('HSET', key_job(job.id), 'strikes', job.strikes, 'losses', job.losses)
    record_attempt(job, reason)
    total('released:' .. reason)
    if job.strikes >= limits.strikes or job.losses >= limits.losses then
      local why = job.strikes >= limits.strikes
        and ('its worker or engine died ' .. job.strikes .. ' times before it gave a token')
        or ('its worker or engine died ' .. job.losses .. ' times in a row')
      job.recorded = true
      lines[#lines + 1] = finish(job, 'dead', limits.retention, reason,
        {'error', cjson.encode({code = 'job_dead', message = why, retryable = false})})
    else
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
