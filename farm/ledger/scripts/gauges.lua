-- All that is measured of the ledger, in one reading. Reads only.
-- No queue is read through: how many wait is counted as they come and go. The oldest is looked for at the heads of the
-- queues of up to 256 tenants a priority (those that go first and those that go last) and among the next 256 jobs that
-- are dispatched or delayed. Of more than 2,000 tenants that wait, none is named.
-- Touches: totals, tally, models, counts:, depth:, rate:, lanes:, queue:, dispatched, delayed, job:, workers, worker:,
--   waiting, waiting_jobs, spent:, dead, hooks_waiting, batches_due, batch:.
-- ARGV: liveness in ms, how many tenants to name, then models that are there though nobody has served them.
-- Returns JSON: totals and tally by name; of each model counts, depth by priority, age_ms of the oldest by priority,
--   slots and what was measured of its jobs; workers by "model role state"; waiting and spent by tenant and in all;
--   and sizes.
local HEADS, MOST, MOST_TENANTS = 128, 256, 2000
local live, named = NOW - tonumber(ARGV[1]), tonumber(ARGV[2])

local function by_name(flat)
  local found = {}
  for i = 1, #flat, 2 do found[flat[i]] = tonumber(flat[i + 1]) end
  return found
end

local totals, tallied = by_name(redis.call('HGETALL', P .. 'totals')), by_name(redis.call('HGETALL', P .. 'tally'))
local models, workers = {}, {}
local function known(name)
  models[name] = models[name] or {slots = 0, age_ms = {}}
  return models[name]
end
for _, name in ipairs(redis.call('HKEYS', P .. 'models')) do known(name) end
for what in pairs(tallied) do known(string.match(what, ':(.*)$')) end
for i = 3, #ARGV do known(ARGV[i]) end

local beats = redis.call('ZREVRANGE', P .. 'workers', 0, 999, 'WITHSCORES')
for i = 1, #beats, 2 do
  local about = redis.call('HMGET', key_worker(beats[i]), 'model', 'role', 'capacity', 'draining', 'trouble')
  if about[2] then
    local is_live, model = tonumber(beats[i + 1]) >= live, about[1] or ''
    local is_troubled = (about[5] or '') ~= ''
    local state = not is_live and 'silent' or about[4] == '1' and 'draining' or is_troubled and 'trouble' or 'ready'
    local line = model .. ' ' .. about[2] .. ' ' .. state
    workers[line] = (workers[line] or 0) + 1
    if model ~= '' then
      local slots = is_live and about[4] ~= '1' and tonumber(about[3] or 0) or 0
      known(model).slots = known(model).slots + slots
    end
  end
end

-- The oldest job of each model and level by its sequence number.
local oldest = {}
local function look(model, level, seq, id)
  local place = model .. ' ' .. level
  if not oldest[place] or seq < oldest[place].seq then
    oldest[place] = {seq = seq, id = id, model = model, level = level}
  end
end
local function look_at_heads(model, level, first, last)
  for _, tenant in ipairs(redis.call('ZRANGE', key_lanes(model, level), first, last)) do
    local head = redis.call('ZRANGE', key_queue({model = model, priority = level, tenant = tenant}), 0, 0, 'WITHSCORES')
    if head[1] then look(model, level, tonumber(head[2]), head[1]) end
  end
end
for model in pairs(models) do
  for _, level in ipairs(LEVELS) do
    local lanes = redis.call('ZCARD', key_lanes(model, level))
    look_at_heads(model, level, 0, HEADS - 1)
    if lanes > HEADS then look_at_heads(model, level, math.max(HEADS, lanes - HEADS), -1) end
  end
end
for _, place in ipairs({'dispatched', 'delayed'}) do
  for _, id in ipairs(redis.call('ZRANGE', P .. place, 0, MOST - 1)) do
    local seen = redis.call('HMGET', key_job(id), 'model', 'priority', 'seq', 'state')
    if seen[1] and (seen[4] == 'dispatched' or seen[4] == 'queued') then
      known(seen[1])
      look(seen[1], seen[2], tonumber(seen[3]), id)
    end
  end
end
for _, found in pairs(oldest) do
  local seen = redis.call('HMGET', key_job(found.id), 'created', 'revived')
  if seen[1] then models[found.model].age_ms[found.level] = NOW - tonumber(seen[2] or seen[1]) end
end
for name, model in pairs(models) do
  model.counts = by_name(redis.call('HGETALL', P .. 'counts:' .. name))
  model.depth = by_name(redis.call('HGETALL', P .. 'depth:' .. name))
  model.rate = by_name(redis.call('HGETALL', P .. 'rate:' .. name))
end

local waiting_jobs = {}
if redis.call('HLEN', P .. 'waiting_jobs') <= MOST_TENANTS then
  local flat, order = redis.call('HGETALL', P .. 'waiting_jobs'), {}
  for i = 1, #flat, 2 do order[#order + 1] = {flat[i], tonumber(flat[i + 1])} end
  table.sort(order, function(a, b) return a[2] > b[2] end)
  for i = 1, math.min(named, #order) do waiting_jobs[order[i][1]] = order[i][2] end
end
local batches = {}
for _, id in ipairs(redis.call('ZRANGE', P .. 'batches_due', 0, MOST - 1)) do
  local status = redis.call('HGET', key_batch(id), 'status')
  if status then batches[status] = (batches[status] or 0) + 1 end
end
return cjson.encode({totals = totals, tally = tallied, models = models, workers = workers, waiting_jobs = waiting_jobs,
  spent = by_name(redis.call('ZREVRANGE', P .. 'spent:' .. today(), 0, named, 'WITHSCORES')), batches = batches,
  waiting = tonumber(redis.call('GET', P .. 'waiting') or 0), dead = redis.call('ZCARD', P .. 'dead'),
  hooks_waiting = tonumber(redis.call('GET', P .. 'hooks_waiting') or 0)})
