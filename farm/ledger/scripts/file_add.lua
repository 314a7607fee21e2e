-- Register a file whose content is in the store. Repeating it changes nothing.
-- Touches: file:, files:, file_bytes, files_due, files_trash.
-- ARGV: id, tenant, most bytes of the tenant or '', bytes that it counts for, retention ms, path, then fields and
--   values.
-- Returns {'ok', ms of its making, ms of its end} or {'full', bytes that the tenant has}.
local id, tenant, path = ARGV[1], ARGV[2], ARGV[6]
local seen = redis.call('HMGET', key_file(id), 'created', 'expires')
if seen[1] then return {'ok', seen[1], seen[2]} end
local most, taken = tonumber(ARGV[3]), tonumber(redis.call('HGET', P .. 'file_bytes', tenant) or 0)
if most and taken + tonumber(ARGV[4]) > most then return {'full', int(taken)} end
local expires = int(NOW + tonumber(ARGV[5]))
redis.call('HSET', key_file(id), 'tenant', tenant, 'path', path, 'counts', ARGV[4], 'created', int(NOW),
  'expires', expires, 'users', '0', unpack(ARGV, 7))
redis.call('ZADD', key_files(tenant), NOW, id)
redis.call('ZADD', P .. 'files_due', expires, id)
redis.call('HINCRBY', P .. 'file_bytes', tenant, ARGV[4])
redis.call('ZREM', P .. 'files_trash', path)
return {'ok', int(NOW), expires}
