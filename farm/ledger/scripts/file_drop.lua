-- Forget a file; its content is deleted from the store afterwards. Not while a batch needs it.
-- Repeating it changes nothing.
-- Touches: file:, files:, place:, file_bytes, files_due, files_trash.
-- ARGV: id, tenant or '' for whosever it is, '1' to drop it only once its time has come.
-- Returns {'ok', path}, {'used'} or {'unknown'}.
local id = ARGV[1]
local seen = redis.call('HMGET', key_file(id), 'tenant', 'path', 'counts', 'users', 'expires')
if not seen[1] then redis.call('ZREM', P .. 'files_due', id) end
if not seen[1] or (ARGV[2] ~= '' and seen[1] ~= ARGV[2]) then return {'unknown'} end
if tonumber(seen[4]) > 0 or (ARGV[3] == '1' and tonumber(seen[5]) > NOW) then return {'used'} end
redis.call('PEXPIRE', key_file(id), 0) -- at once; only workers have the right to DEL, and an API drops files too
keep_place(seen[1], id, redis.call('ZSCORE', key_files(seen[1]), id))
redis.call('ZREM', key_files(seen[1]), id)
redis.call('ZREM', P .. 'files_due', id)
if redis.call('HINCRBY', P .. 'file_bytes', seen[1], -tonumber(seen[3])) <= 0 then
  redis.call('HDEL', P .. 'file_bytes', seen[1])
end
redis.call('ZADD', P .. 'files_trash', NOW, seen[2])
return {'ok', seen[2]}
