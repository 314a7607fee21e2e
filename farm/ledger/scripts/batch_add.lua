-- Accept a batch. Repeating it changes nothing.
-- Touches: batch:, batches:, place:, batches_open, batches_due, file:.
-- ARGV: id, tenant, id of the input file, fingerprint of the request, most batches that a tenant may have open, window
--   in ms, then fields and values.
-- Returns {'new'}, {'same'}, {'conflict'}, {'no file'}, {'wrong file', its purpose} or {'limit', how many are open}.
local id, tenant, file = ARGV[1], ARGV[2], ARGV[3]
local known = redis.call('HGET', key_batch(id), 'fingerprint')
if known then return {known == ARGV[4] and 'same' or 'conflict'} end
local seen = redis.call('HMGET', key_file(file), 'tenant', 'purpose', 'expires')
if seen[1] ~= tenant or tonumber(seen[3]) <= NOW then return {'no file'} end
if seen[2] ~= 'batch' then return {'wrong file', seen[2]} end
local open = tonumber(redis.call('HGET', P .. 'batches_open', tenant) or 0)
if open >= tonumber(ARGV[5]) then return {'limit', open} end
redis.call('HSET', key_batch(id), 'tenant', tenant, 'status', 'validating', 'input', file, 'fingerprint', ARGV[4],
  'created', int(NOW), 'expires', int(NOW + tonumber(ARGV[6])), 'step', '0', unpack(ARGV, 7))
-- A batch's own TTL leaves its name on the list; the oldest names are looked at whenever one is added.
for _, old in ipairs(redis.call('ZRANGE', key_batches(tenant), 0, 4)) do
  if redis.call('EXISTS', key_batch(old)) == 0 then
    keep_place(tenant, old, redis.call('ZSCORE', key_batches(tenant), old))
    redis.call('ZREM', key_batches(tenant), old)
  end
end
redis.call('ZADD', key_batches(tenant), NOW, id)
redis.call('PERSIST', key_batches(tenant))
redis.call('HINCRBY', P .. 'batches_open', tenant, 1)
redis.call('HINCRBY', key_file(file), 'users', 1)
redis.call('ZADD', P .. 'batches_due', NOW, id)
return {'new'}
