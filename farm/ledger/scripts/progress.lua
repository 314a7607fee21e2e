-- A worker's beat: append new tokens, renew its leases, hear what it has lost. Repeating it appends nothing twice.
-- Touches: beat, grace, workers, worker:, job:, out:, running, events.
-- ARGV: worker, capacity, draining 0|1, stall ms, lease ms, trouble or '', then for each job: id, nonce, index of the
--   first entry, prompt tokens or 0, number of entries, the entries.
-- Returns {'ok' | 'unregistered', then for each job: 'ok' | 'gap' | 'lost:<its state>', number of tokens kept}.
local worker, lease = ARGV[1], tonumber(ARGV[5])
beat(tonumber(ARGV[4]), lease)
local answer, lines, leases, added = {'ok'}, {}, {}, 0
if not is_registered(worker) then
  answer[1] = 'unregistered'
else
  redis.call('HSET', key_worker(worker), 'capacity', ARGV[2], 'trouble', ARGV[6])
  if ARGV[3] == '1' then redis.call('HSET', key_worker(worker), 'draining', '1') end
  redis.call('ZADD', P .. 'workers', NOW, worker)
end
local i = 7
while i <= #ARGV do
  local id, nonce, from = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  local prompt_tokens, n = ARGV[i + 3], tonumber(ARGV[i + 4])
  local seen = redis.call('HMGET', key_job(id),
    'state', 'nonce', 'losses', 'base', 'strikes', 'prompt_tokens', 'probation')
  local have = redis.call('LLEN', key_out(id))
  local word = 'lost:' .. (seen[1] or '')
  if seen[1] == 'running' and seen[2] == nonce then
    word = from <= have and 'ok' or 'gap'
    leases[#leases + 1] = NOW + lease
    leases[#leases + 1] = id
    local first = i + 5 + (have - from)
    local last = i + 4 + n
    if word == 'ok' and first <= last then
      redis.call('HINCRBY', key_job(id), 'bytes', append(id, first, last))
      have = have + last - first + 1
      added = added + last - first + 1
      -- Written only where it changes something: this runs for every job many times a second.
      if tonumber(seen[5] or 0) > 0 then redis.call('HSET', key_job(id), 'strikes', '0') end
      if tonumber(seen[3] or 0) > 0 and have - tonumber(seen[4] or 0) >= PROOF then
        redis.call('HSET', key_job(id), 'losses', '0')
      end
      if seen[7] then redis.call('HDEL', key_job(id), 'probation') end
      lines[#lines + 1] = id .. ' ' .. have .. ' running'
    end
    if prompt_tokens ~= '0' and prompt_tokens ~= seen[6] then
      redis.call('HSET', key_job(id), 'prompt_tokens', prompt_tokens)
    end
  end
  answer[#answer + 1] = word
  answer[#answer + 1] = have
  i = i + 5 + n
end
for k = 1, #leases, PIECE do
  redis.call('ZADD', P .. 'running', unpack(leases, k, math.min(k + PIECE - 1, #leases)))
end
if added > 0 and is_registered(worker) then redis.call('HINCRBY', key_worker(worker), 'tokens', added) end
announce(lines)
return answer
