-- Ask for the end of a batch. Repeating it changes nothing.
-- Touches: batch:.
-- ARGV: id, tenant.
-- Returns its status afterwards, or ''.
local seen = redis.call('HMGET', key_batch(ARGV[1]), 'tenant', 'status')
if seen[1] ~= ARGV[2] then return '' end
if seen[2] ~= 'validating' and seen[2] ~= 'in_progress' then return seen[2] end
redis.call('HSET', key_batch(ARGV[1]), 'status', 'cancelling', 'cancelling', int(NOW))
return 'cancelling'
