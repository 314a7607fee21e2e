-- Choose the jobs whose messages go out next, no more than live workers have room for. Repeating it chooses others; a
-- job chosen in an answer that got lost is published again when nobody claims it.
-- Order: priority, then the tenant with the least virtual time, then age. A tenant further ahead of its fair share than
-- `lead` tokens gets no more from priority high while another waits at normal.
-- Touches: leader, schema, workers, worker:, held:, counts:, lanes:, queue:, vtime:, vclock:, owed:, job:, dispatched.
-- ARGV: token, lock ms, most jobs, liveness ms, margin, unclaimed ms, lead.
-- Returns {'follower'} or {'leader', id, dispatch, model, priority, plain headers, ...}.
local lead_key = P .. 'leader'
local holder = redis.call('GET', lead_key)
if is_beyond_us() or holder and holder ~= ARGV[1] then return {'follower'} end
redis.call('SET', lead_key, ARGV[1], 'PX', ARGV[2])

local most, margin, lead = tonumber(ARGV[3]), tonumber(ARGV[5]), tonumber(ARGV[7])
local unclaimed = tonumber(ARGV[6])
local room = {}
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', P .. 'workers', NOW - tonumber(ARGV[4]), '+inf')) do
  local info = redis.call('HMGET', key_worker(worker), 'model', 'capacity', 'draining')
  if info[1] and info[1] ~= '' and info[2] ~= '0' and info[3] ~= '1' then
    local free = tonumber(info[2]) - redis.call('SCARD', key_held(worker))
    room[info[1]] = (room[info[1]] or 0) + math.max(0, free) + margin
  end
end

local function head(model, level)
  local found = redis.call('ZRANGE', key_lanes(model, level), 0, 0, 'WITHSCORES')
  return found[1], tonumber(found[2])
end

-- The lane to serve next: level and tenant.
local function pick(model)
  local high, ahead = head(model, 'high')
  local normal, least = head(model, 'normal')
  if high and not (normal and ahead > least + lead) then return 'high', high end
  if normal then return 'normal', normal end
  return 'low', (head(model, 'low'))
end

local answer, looks = {'leader'}, 4 * most
for model, free in pairs(room) do
  free = free - tonumber(redis.call('HGET', P .. 'counts:' .. model, 'dispatched') or 0)
  while free > 0 and most > 0 and looks > 0 do
    looks = looks - 1
    local level, tenant = pick(model)
    if not tenant then break end
    local lane = {model = model, priority = level, tenant = tenant}
    lane.id = redis.call('ZRANGE', key_queue(lane), 0, 0)[1]
    local job = lane.id and load(lane.id)
    if not job or job.state ~= 'queued' then
      take_from_queue(lane.id and lane or {id = '', model = model, priority = level, tenant = tenant})
    else
      local start = vtime(model, tenant)
      if start > tonumber(redis.call('GET', P .. 'vclock:' .. model) or 0) then
        redis.call('SET', P .. 'vclock:' .. model, string.format('%.3f', start))
      end
      leave(job, true)
      redis.call('HSET', key_job(job.id), 'state', 'dispatched', 'dispatch', job.dispatch + 1)
      redis.call('ZADD', P .. 'dispatched', NOW + unclaimed, job.id)
      count(model, 'dispatched', 1)
      if job.charged == 0 then
        redis.call('HSET', key_job(job.id), 'charged', int(job.cost))
        charge(job, job.cost)
        owe(job, job.cost)
      end
      local message = {job.id, int(job.dispatch + 1), model, level, job.plain or ''}
      for _, value in ipairs(message) do answer[#answer + 1] = value end
      free, most = free - 1, most - 1
    end
  end
end
return answer
