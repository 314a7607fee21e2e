-- The end of a job: its outcome, what it took, and who is told.

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
  -- First what every version may write: the sweep finds it, should the server's rules refuse us the others.
  redis.call('ZADD', P .. 'webhooks', 'LT', at + SWEEP, lane)
  redis.call('ZADD', key_hook_lanes(tenant), 'LT', at, lane)
  redis.call('ZADD', P .. 'hook_tenants', 'LT', at, tenant)
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
  list_result(job.tenant, job.id, job.bytes, NOW)
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
  -- Its slot is free: of use only to a job that waits for one.
  if redis.call('HGET', P .. 'counts:' .. job.model, 'queued') ~= '0' then wake() end
  job.state = state
  return job.id .. ' ' .. tokens .. ' ' .. state
end
