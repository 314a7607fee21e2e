-- Note how a call of a webhook went, and when to try again. Only the call that was made last counts, unless it
-- succeeded; a repetition finds that the call is noted.
-- Touches: webhooks, hook_tenants, hook_lanes:, hooks:, hooks_waiting, job:, batch:, totals.
-- ARGV: job:<id> or batch:<id>, lane, number of its end, the sender's token for that call, delivered | refused | retry,
--   ms until the next try, ms after the end at which to give up, the call as JSON without its time.
-- Returns the state that it is in: pending, delivered, failed, or '' when there was nothing to note.
local member, lane, token, outcome = ARGV[1], ARGV[2], ARGV[4], ARGV[5]
local kind, id = string.match(member, '^(%a+):(.*)$')
local tenant = string.match(lane, '^[^:]*')
local key = key_job(id)
if kind == 'batch' then key = key_batch(id) end
local seen = redis.call('HMGET', key, 'finished', 'hook_state', 'hook_token', 'hook_log', 'hook_event')
if not seen[1] or seen[5] ~= ARGV[3] or seen[2] ~= 'pending' then return '' end
if seen[3] ~= token and outcome ~= 'delivered' then return '' end
local call = cjson.decode(ARGV[8])
call.at = NOW / 1000
local log = seen[4] and cjson.decode(seen[4]) or {}
log[#log + 1] = call
while #log > 10 do table.remove(log, 1) end
local again = NOW + tonumber(ARGV[6])
local state = outcome
if outcome == 'retry' then
  state = again <= tonumber(seen[1]) + tonumber(ARGV[7]) and 'pending' or 'failed'
elseif outcome == 'refused' then
  state = 'failed'
end
redis.call('HSET', key, 'hook_state', state, 'hook_log', cjson.encode(log))
redis.call('HDEL', key, 'hook_token')
if state == 'pending' then
  redis.call('ZADD', key_hooks(lane), again, member)
  list_lane(lane, tenant, again)
else
  redis.call('DECRBY', P .. 'hooks_waiting', redis.call('ZREM', key_hooks(lane), member))
  strike_lane(lane, tenant)
  total('webhooks:' .. state)
end
return state
