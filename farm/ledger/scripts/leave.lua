-- Forget a worker that has handed everything back. Repeating it changes nothing.
-- Touches: names, workers, worker:, held:.
-- ARGV: worker.
local name = redis.call('HGET', key_worker(ARGV[1]), 'name')
if redis.call('SCARD', key_held(ARGV[1])) > 0 then return 0 end
if name and redis.call('HGET', P .. 'names', name) == ARGV[1] then redis.call('HDEL', P .. 'names', name) end
redis.call('DEL', key_worker(ARGV[1]))
redis.call('ZREM', P .. 'workers', ARGV[1])
return 1
