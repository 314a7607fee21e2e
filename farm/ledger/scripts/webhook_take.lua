-- Take webhooks that are due, for a sender that calls them now. Those of one tenant and receiver stand in one lane; one
-- lane and one tenant get so many calls at once and no more, so that a receiver that is slow delays nobody else's.
-- Who is not heard of again loses what it took after `hold`. Repeating it takes others.
-- Touches: webhooks, hooks:, hooks_waiting, job:, batch:.
-- ARGV: the sender's token for this call, hold ms, most to take, most at once of a lane, most at once of a tenant, then
--   the lanes that the sender is busy with, each with the number of its calls.
-- Returns for each: job:<id> or batch:<id>, tenant, url, number of its end, how often it was tried before, lane.
local token, hold, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local most_of_lane, most_of_tenant = tonumber(ARGV[4]), tonumber(ARGV[5])
local LOOK = 64 -- lanes a call
local answer, of_lane, of_tenant = {}, {}, {}
local function tenant_of(lane) return string.match(lane, '^[^:]*') end
for i = 6, #ARGV, 2 do
  local calls, tenant = tonumber(ARGV[i + 1]), tenant_of(ARGV[i])
  of_lane[ARGV[i]] = calls
  of_tenant[tenant] = (of_tenant[tenant] or 0) + calls
end

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

local taken = 0
for _, lane in ipairs(redis.call('ZRANGEBYSCORE', P .. 'webhooks', '-inf', NOW, 'LIMIT', 0, LOOK)) do
  local tenant = tenant_of(lane)
  local room = math.min(most - taken, most_of_lane - (of_lane[lane] or 0), most_of_tenant - (of_tenant[tenant] or 0))
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', key_hooks(lane), '-inf', NOW, 'LIMIT', 0, math.max(0, room))) do
    local one = take(lane, tenant, member)
    taken, of_tenant[tenant] = taken + one, (of_tenant[tenant] or 0) + one
  end
  local first = redis.call('ZRANGE', key_hooks(lane), 0, 0, 'WITHSCORES')
  if not first[2] then
    redis.call('ZREM', P .. 'webhooks', lane)
  else
    -- A lane that has more than it may send steps back, so that it hides no other one.
    redis.call('ZADD', P .. 'webhooks', math.max(tonumber(first[2]), NOW + 50), lane)
  end
  if taken >= most then break end
end
return answer
