-- End a batch: the one write of its outcome, with the files that hold it. Who was told that it is being cancelled sees
-- it cancelled, however far it came. A repetition gets the same answer.
-- Touches: batch:, batch_parts:, batches:, batches_due, batches_open, file:, files:, file_bytes, files_due,
--   files_trash, totals, and what an end touches.
-- ARGV: id, nonce, status, retention ms, path of its parts, number of fields and values, these, then for each file: its
--   field in the batch, id, path, name, bytes, bytes that it counts for, retention ms.
-- Returns {'ok'} or {'lost'}.
local id, status, retention, n = ARGV[1], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[6])
local key = key_batch(id)
local seen = redis.call('HMGET', key, 'nonce', 'status', 'tenant', 'input', 'webhook', 'finished')
if seen[1] ~= ARGV[2] then return {'lost'} end
if seen[6] then return {'ok'} end
if seen[2] == 'cancelling' then status = 'cancelled' end
local tenant = seen[3]
if n > 0 then redis.call('HSET', key, unpack(ARGV, 7, 6 + n)) end
for i = 7 + n, #ARGV, 7 do
  local file, path, expires = ARGV[i + 1], ARGV[i + 2], int(NOW + tonumber(ARGV[i + 6]))
  redis.call('HSET', key_file(file), 'tenant', tenant, 'path', path, 'filename', ARGV[i + 3], 'bytes', ARGV[i + 4],
    'counts', ARGV[i + 5], 'purpose', 'batch_output', 'created', int(NOW), 'expires', expires, 'users', '0')
  redis.call('ZADD', key_files(tenant), NOW, file)
  redis.call('ZADD', P .. 'files_due', expires, file)
  redis.call('HINCRBY', P .. 'file_bytes', tenant, ARGV[i + 5])
  redis.call('ZREM', P .. 'files_trash', path)
  redis.call('HSET', key, ARGV[i], file)
end
redis.call('HSET', key, 'status', status, status, int(NOW), 'finished', int(NOW))
redis.call('ZREM', P .. 'batches_due', id)
if redis.call('HINCRBY', P .. 'batches_open', tenant, -1) <= 0 then
  redis.call('HDEL', P .. 'batches_open', tenant)
  redis.call('PEXPIRE', key_batches(tenant), retention) -- with the last of them
end
if redis.call('EXISTS', key_file(seen[4])) == 1 then redis.call('HINCRBY', key_file(seen[4]), 'users', -1) end
redis.call('HDEL', key, 'ahead', 'repeats')
redis.call('DEL', key_parts(id))
redis.call('ZADD', P .. 'files_trash', NOW + 60000, ARGV[5])
redis.call('PEXPIRE', key, retention)
if seen[5] then tell(key_batch(id), tenant, seen[5]) end
total('batches:' .. status)
return {'ok'}
