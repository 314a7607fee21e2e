-- Take webhooks that are due, for a sender that calls them now. Those of one tenant and receiver stand in one lane; one
-- lane and one tenant get so many calls at once and no more, so that a receiver that is slow delays nobody else's.
-- Tenants have turns, and the lanes of a tenant: who was looked at goes behind the others that are due. A tenant
-- without room is passed over, however many lanes it has.
-- `webhooks` has every lane a minute late: a version that knows no turns lists lanes there alone, and takes from there.
-- Who is not heard of again loses what it took after `hold`. Repeating it takes others.
-- Touches: webhooks, hook_tenants, hook_lanes:, hooks:, hooks_waiting, job:, batch:.
-- ARGV: the sender's token for this call, hold ms, most to take, most at once of a lane, most at once of a tenant, then
--   the lanes that the sender is busy with, each with the number of its calls.
-- Returns for each: job:<id> or batch:<id>, tenant, url, number of its end, how often it was tried before, lane.
local token, hold, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local most_of_lane, most_of_tenant = tonumber(ARGV[4]), tonumber(ARGV[5])
local LOOK = 64 -- tenants a call, lanes a call, and lanes that the sweep finds a call
local LANES = 16 -- of a tenant a call; of those, its share of calls can fill three
local answer, of_lane, of_tenant = {}, {}, {}
local function tenant_of(lane) return string.match(lane, '^[^:]*') end
for i = 6, #ARGV, 2 do
  local calls, tenant = tonumber(ARGV[i + 1]), tenant_of(ARGV[i])
  of_lane[ARGV[i]] = calls
  of_tenant[tenant] = (of_tenant[tenant] or 0) + calls
end

local function due(key, count) return redis.call('ZRANGEBYSCORE', key, '-inf', NOW, 'LIMIT', 0, count) end
local function first_of(key) return tonumber(redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]) end

local function take(lane, tenant, member)
  local kind, id = string.match(member, '^(%a+):(.*)$')
  local key = key_job(id)
  if kind == 'batch' then key = key_batch(id) end
  local seen = redis.call('HMGET', key, 'webhook', 'finished', 'hook_state', 'hook_tries', 'tenant', 'hook_event')
  if not seen[1] or not seen[2] or seen[3] ~= 'pending' or seen[5] ~= tenant then
    redis.call('DECRBY', P .. 'hooks_waiting', redis.call('ZREM', key_hooks(lane), member))
    return 0
  end
  redis.call('ZADD', key_hooks(lane), NOW + hold, member)
  redis.call('HSET', key, 'hook_tries', tonumber(seen[4] or 0) + 1, 'hook_token', token)
  for _, value in ipairs({member, tenant, string.match(seen[1], ' (.*)$'), seen[6], tonumber(seen[4] or 0), lane}) do
    answer[#answer + 1] = value
  end
  return 1
end

for _, lane in ipairs(due(P .. 'webhooks', LOOK)) do
  local first = first_of(key_hooks(lane))
  if first then
    local at = math.max(first, NOW)
    list_lane(lane, tenant_of(lane), at)
    redis.call('ZADD', P .. 'webhooks', at + SWEEP, lane)
  else
    strike_lane(lane, tenant_of(lane))
  end
end

local taken, looks = 0, LOOK
for _, tenant in ipairs(due(P .. 'hook_tenants', LOOK)) do
  local room = math.min(most - taken, most_of_tenant - (of_tenant[tenant] or 0))
  if room > 0 then
    for _, lane in ipairs(due(key_hook_lanes(tenant), math.min(looks, LANES))) do
      local count = math.min(room, most_of_lane - (of_lane[lane] or 0))
      for _, member in ipairs(count > 0 and due(key_hooks(lane), count) or {}) do
        local one = take(lane, tenant, member)
        taken, room = taken + one, room - one
      end
      local first = first_of(key_hooks(lane))
      if first then redis.call('ZADD', key_hook_lanes(tenant), math.max(first, NOW + 1), lane) end
      strike_lane(lane, tenant)
      looks = looks - 1
      if room == 0 then break end
    end
    local first = first_of(key_hook_lanes(tenant))
    if first then
      redis.call('ZADD', P .. 'hook_tenants', math.max(first, NOW + 1), tenant)
    else
      redis.call('ZREM', P .. 'hook_tenants', tenant)
    end
  end
  if taken >= most or looks == 0 then break end
end
return answer
