-- Renew the lease of a batch; with a step, write how far it has come. A step counts once: a repetition changes nothing.
-- Touches: batch:, batch_parts:, batches_due.
-- ARGV: id, nonce, lease ms (0 gives it back: whoever is next may take it), number of the step or '', its status or '',
--   number of parts, the parts, then fields and values.
-- Returns {'ok', status, how many batches wait for somebody to drive them, 1 when its window has closed} or {'lost'}.
local id, status, parts = ARGV[1], ARGV[5], tonumber(ARGV[6])
local key = key_batch(id)
local seen = redis.call('HMGET', key, 'nonce', 'status', 'step', 'expires')
if seen[1] ~= ARGV[2] or not redis.call('ZSCORE', P .. 'batches_due', id) then return {'lost'} end
if ARGV[4] ~= '' and tonumber(ARGV[4]) == tonumber(seen[3]) + 1 then
  redis.call('HSET', key, 'step', ARGV[4])
  if #ARGV > 6 + parts then redis.call('HSET', key, unpack(ARGV, 7 + parts)) end
  if parts > 0 then redis.call('RPUSH', key_parts(id), unpack(ARGV, 7, 6 + parts)) end
  -- Who asked for the end of a batch sees it cancelling until it has ended.
  if status ~= '' and status ~= seen[2] and seen[2] ~= 'cancelling' then
    redis.call('HSET', key, 'status', status, status, int(NOW))
    seen[2] = status
  end
end
redis.call('ZADD', P .. 'batches_due', NOW + tonumber(ARGV[3]), id)
return {'ok', seen[2], redis.call('ZCOUNT', P .. 'batches_due', '-inf', NOW), tonumber(seen[4]) <= NOW and 1 or 0}
