-- Take the batch that has waited longest for somebody to drive it. Repeating it takes another one; one whose taker is
-- not heard of again is there for others when its lease ends.
-- Touches: batches_due, batch:.
-- ARGV: nonce, worker, lease ms.
-- Returns {} or {id, then its fields and values}.
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'batches_due', '-inf', NOW, 'LIMIT', 0, 16)) do
  if redis.call('EXISTS', key_batch(id)) == 1 then
    redis.call('ZADD', P .. 'batches_due', NOW + tonumber(ARGV[3]), id)
    redis.call('HSET', key_batch(id), 'nonce', ARGV[1], 'worker', ARGV[2])
    return {id, unpack(redis.call('HGETALL', key_batch(id)))}
  end
  redis.call('ZREM', P .. 'batches_due', id)
end
return {}
