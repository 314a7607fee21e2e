-- Where queued jobs stand by the order of dispatch as it is, and the pace of their models. Reads only.
-- Touches: job:, queue:, lanes:, rate:, counts:, workers, worker:.
-- ARGV: liveness in ms, then for each job its id; or, for one that may come, '' and its model, priority and tenant.
-- Returns three lists: for each job its position from 1 (0: it does not wait); for each the number of its pace; and the
--   paces: slots of live workers, slots that no job runs in; and as text what was measured of late: tokens per second of
--   a running sequence and tokens per job ('0': not known yet), from how many jobs, and how many seconds ago the last
--   of them ended.
local FEW_JOBS = 2 -- a pace is told from more than so many finished jobs
local live, models, lanes, paces = NOW - tonumber(ARGV[1]), {}, {}, {}

local function pace_of(model)
  if models[model] then return models[model] end
  local slots = 0
  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', P .. 'workers', live, '+inf')) do
    local about = redis.call('HMGET', key_worker(worker), 'model', 'capacity', 'draining')
    if about[1] == model and about[3] ~= '1' then slots = slots + tonumber(about[2] or 0) end
  end
  local counted = redis.call('HMGET', P .. 'counts:' .. model, 'dispatched', 'running')
  local rate = redis.call('HMGET', P .. 'rate:' .. model, 'jobs', 'tokens', 'slot_ms', 'at')
  local jobs, tokens, slot_ms = tonumber(rate[1] or 0), tonumber(rate[2] or 0), tonumber(rate[3] or 0)
  local known = jobs > FEW_JOBS and tokens > 0
  local free = math.max(0, slots - tonumber(counted[2] or 0))
  local measured = {known and 1000 * tokens / math.max(1, slot_ms) or 0, known and tokens / jobs or 0, jobs,
    (NOW - tonumber(rate[4] or NOW)) / 1000}
  for n, value in ipairs(measured) do measured[n] = tostring(value) end
  paces[#paces + 1] = {slots, free, unpack(measured)}
  models[model] = {number = #paces, dispatched = tonumber(counted[1] or 0)}
  return models[model]
end

-- How many jobs each tenant has waiting at a level.
local function waiting(model, level)
  local lane = key_lanes(model, level)
  if not lanes[lane] then
    lanes[lane] = {}
    for _, tenant in ipairs(redis.call('ZRANGE', lane, 0, 99)) do
      lanes[lane][tenant] = redis.call('ZCARD', key_queue({model = model, priority = level, tenant = tenant}))
    end
  end
  return lanes[lane]
end

local function position_of(job, rank)
  local ahead = pace_of(job.model).dispatched
  for _, level in ipairs(LEVELS) do
    local own = level == job.priority
    for tenant, jobs in pairs(waiting(job.model, level)) do
      -- At the job's own level tenants take turns, so another's jobs go before it at the pace of its own.
      if own then jobs = tenant == job.tenant and rank or math.min(jobs, rank + 1) end
      ahead = ahead + jobs
    end
    if own then break end
  end
  return ahead + 1
end

local positions, numbers, i = {}, {}, 2
while i <= #ARGV do
  local job, position, rank = nil, 0, 0
  if ARGV[i] == '' then
    job = {model = ARGV[i + 1], priority = ARGV[i + 2], tenant = ARGV[i + 3], state = 'queued'}
    rank = waiting(job.model, job.priority)[job.tenant] or 0
    i = i + 4
  else
    local seen = redis.call('HMGET', key_job(ARGV[i]), 'state', 'model', 'priority', 'tenant')
    job = {model = seen[2] or '', priority = seen[3], tenant = seen[4], state = seen[1]}
    if job.state == 'queued' then rank = redis.call('ZRANK', key_queue(job), ARGV[i]) or 0 end
    i = i + 1
  end
  -- The message of a dispatched job is out: it runs in a moment.
  if job.state == 'dispatched' then position = 1 elseif job.state == 'queued' then position = position_of(job, rank) end
  positions[#positions + 1] = position
  numbers[#numbers + 1] = pace_of(job.model).number
end
return {positions, numbers, paces}
