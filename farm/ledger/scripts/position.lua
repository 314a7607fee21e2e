-- Where queued jobs stand by the order of dispatch as it is, and the pace of their models. Reads only.
-- Touches: job:, queue:, lanes:, vtime:, vclock:, weights, waiting_jobs, waiting_tokens, rate:, counts:, workers,
--   worker:.
-- ARGV: liveness in ms, lead of priority high in tokens, then for each job its id; or, for one that may come, '' and
--   its model, priority and tenant.
-- Returns lists; of the jobs all, or the first ones if those are work enough for one call. For each job its position
--   from 1 (0: it does not wait); for each the tokens that will be generated for jobs before it, as text; for each the
--   number of its pace; and the paces: slots of live workers, slots that no job runs in; and as text what was measured
--   of late: tokens per second of a running sequence and tokens per job ('0': not known yet), from how many jobs, and
--   how many seconds ago the last of them ended.
local FEW_JOBS = 2 -- a pace is told from more than so many finished jobs
local MOST_LANES = 100 -- tenants of a level that are looked at
local MOST_LOOKS = 2000 -- at tenants, in one call
local EQUAL = 0.01 -- virtual times are kept to a thousandth
local live, lead, looks = NOW - tonumber(ARGV[1]), tonumber(ARGV[2]), 0
local models, known_lanes, paces = {}, {}, {}

local function pace_of(model)
  if models[model] then return models[model] end
  local slots = 0
  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', P .. 'workers', live, '+inf')) do
    local about = redis.call('HMGET', key_worker(worker), 'model', 'capacity', 'draining')
    if about[1] == model and about[3] ~= '1' then slots = slots + tonumber(about[2] or 0) end
  end
  local counted = redis.call('HMGET', P .. 'counts:' .. model, 'dispatched', 'running')
  local rate = redis.call('HMGET', P .. 'rate:' .. model, 'jobs', 'tokens', 'slot_ms', 'at', 'cost')
  local jobs, tokens, slot_ms = tonumber(rate[1] or 0), tonumber(rate[2] or 0), tonumber(rate[3] or 0)
  local known = jobs > FEW_JOBS and tokens > 0
  local pace = {number = #paces + 1, dispatched = tonumber(counted[1] or 0), per_job = known and tokens / jobs or 0,
    -- What came of the tokens that jobs were charged for: few use all of their max_tokens.
    yield = known and tokens / math.max(1, tonumber(rate[5] or 0)) or 0}
  local measured = {known and 1000 * tokens / math.max(1, slot_ms) or 0, pace.per_job, jobs,
    (NOW - tonumber(rate[4] or NOW)) / 1000}
  for n, value in ipairs(measured) do measured[n] = tostring(value) end
  paces[pace.number] = {slots, math.max(0, slots - tonumber(counted[2] or 0)), unpack(measured)}
  models[model] = pace
  return pace
end

-- A tenant's jobs at a level: how many wait, from which virtual time on, and by how much each moves it.
local function lanes_of(model, level)
  local lane = key_lanes(model, level)
  if known_lanes[lane] then return known_lanes[lane] end
  local found = redis.call('ZRANGE', lane, 0, MOST_LANES - 1, 'WITHSCORES')
  local tenants, lanes = {}, {}
  for i = 1, #found, 2 do tenants[#tenants + 1] = found[i] end
  if #tenants > 0 then
    local weights = redis.call('HMGET', P .. 'weights', unpack(tenants))
    local jobs = redis.call('HMGET', P .. 'waiting_jobs', unpack(tenants))
    local tokens = redis.call('HMGET', P .. 'waiting_tokens', unpack(tenants))
    for i, tenant in ipairs(tenants) do
      local cost = math.max(1, tonumber(tokens[i] or 0) / math.max(1, tonumber(jobs[i] or 0)))
      lanes[#lanes + 1] = {tenant = tenant, vtime = tonumber(found[2 * i]), cost = cost,
        step = cost / tonumber(weights[i] or 1),
        waiting = redis.call('ZCARD', key_queue({model = model, priority = level, tenant = tenant}))}
    end
  end
  known_lanes[lane] = lanes
  return lanes
end

-- Up to which virtual time a level's jobs go before one that starts at `start` at another or the same level:
-- see dispatch.
local function horizon(level, priority, start)
  if level == priority then return start end
  if priority == 'low' then return math.huge end
  if level == 'low' then return -math.huge end
  return level == 'high' and start + lead or start - lead
end

-- How many of a lane's jobs go before the horizon, of which those at it go before, too, if `is_first`.
local function before(lane, vtime, upto, is_first)
  if upto == math.huge then return lane.waiting end
  local steps = math.max(0, math.ceil((upto - vtime - EQUAL) / lane.step))
  if is_first and math.abs(vtime + steps * lane.step - upto) <= EQUAL then steps = steps + 1 end
  return math.min(lane.waiting, steps)
end

-- How many tokens a lane's jobs will generate: their share of what they are charged for, and no fewer than jobs of
-- late, if they may.
local function expected(lane, pace) return math.max(lane.cost * pace.yield, math.min(lane.cost, pace.per_job)) end

-- How many jobs, and tokens of theirs, go before a job that has `rank` jobs of its own lane before it.
local function ahead_of(job, rank, pace)
  local start = job.id and vtime(job.model, job.tenant) or starting_time(job)
  local jobs, tokens = 0, 0
  -- The tenant's own jobs first: they move the time at which this one starts.
  for _, level in ipairs(LEVELS) do
    for _, lane in ipairs(lanes_of(job.model, level)) do
      if lane.tenant == job.tenant then
        local own = level == job.priority and rank or lane.waiting
        start, jobs, tokens = start + own * lane.step, jobs + own, tokens + own * expected(lane, pace)
      end
    end
    if level == job.priority then break end
  end
  local moved = {}
  for _, level in ipairs(LEVELS) do
    local upto = horizon(level, job.priority, start)
    looks = looks + #lanes_of(job.model, level)
    for _, lane in ipairs(lanes_of(job.model, level)) do
      if lane.tenant ~= job.tenant then
        local is_first = level == 'high' and job.priority == 'normal'
          or level == job.priority and lane.tenant < job.tenant
        local count = before(lane, moved[lane.tenant] or lane.vtime, upto, is_first)
        moved[lane.tenant] = (moved[lane.tenant] or lane.vtime) + count * lane.step
        jobs, tokens = jobs + count, tokens + count * expected(lane, pace)
      end
    end
  end
  return jobs, tokens
end

local function rank_of(job)
  if job.id then return redis.call('ZRANK', key_queue(job), job.id) or 0 end
  return redis.call('ZCARD', key_queue(job))
end

local positions, ahead, numbers, i = {}, {}, {}, 3
while i <= #ARGV and looks < MOST_LOOKS do
  local job, position, tokens = nil, 0, 0
  if ARGV[i] == '' then
    job = {model = ARGV[i + 1], priority = ARGV[i + 2], tenant = ARGV[i + 3], state = 'queued'}
    i = i + 4
  else
    local seen = redis.call('HMGET', key_job(ARGV[i]), 'state', 'model', 'priority', 'tenant')
    job = {id = ARGV[i], model = seen[2] or '', priority = seen[3], tenant = seen[4], state = seen[1]}
    i = i + 1
  end
  local pace = pace_of(job.model)
  if job.state == 'dispatched' then
    position = 1 -- its message is out: it runs in a moment
  elseif job.state == 'queued' then
    local jobs
    jobs, tokens = ahead_of(job, rank_of(job), pace)
    position, tokens = pace.dispatched + jobs + 1, pace.dispatched * pace.per_job + tokens
  end
  positions[#positions + 1] = position
  ahead[#ahead + 1] = tostring(tokens)
  numbers[#numbers + 1] = pace.number
end
return {positions, ahead, numbers, paces}
