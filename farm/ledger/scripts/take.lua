-- Take a request from each tenant's allowance, and say what it has left of everything. Repeating it takes more of them.
-- The allowance is a bucket of `burst` requests that fills at the tenant's rate; all that is kept of it is the time at
-- which it is full again (GCRA).
-- Touches: limits, pace:, waiting_jobs, waiting_tokens.
-- ARGV: what the settings say, '' for no limit: requests per s, queued jobs, queued tokens; then tenants.
-- Returns for each {1, or 0 when refused, burst or '', requests left, ms until all are there again, ms until the next
--   one is, jobs waiting, limit or '', tokens waiting, limit or ''}.
local function take(tenant, limit)
  local rate = limit('requests_per_s', ARGV[1])
  if not rate then return 1, '', 0, 0, 0 end
  local burst = limit('burst', '') or math.max(1, math.ceil(2 * rate))
  local each = 1000 / rate
  local full_at = math.max(NOW, tonumber(redis.call('GET', P .. 'pace:' .. tenant) or 0)) + each
  local wait = full_at - burst * each - NOW
  if wait > 0 then return 0, burst, 0, math.ceil(full_at - each - NOW), math.ceil(wait) end
  redis.call('SET', P .. 'pace:' .. tenant, string.format('%.3f', full_at), 'PX', math.ceil(full_at - NOW))
  return 1, burst, math.floor(burst - (full_at - NOW) / each + 1e-6), math.ceil(full_at - NOW), 0
end

local answer = {}
for i = 4, #ARGV do
  local tenant, limit = ARGV[i], limits_of(ARGV[i])
  local told = {take(tenant, limit)}
  local function standing(taken, most)
    told[#told + 1] = tonumber(taken or 0)
    told[#told + 1] = most and int(most) or ''
  end
  standing(redis.call('HGET', P .. 'waiting_jobs', tenant), limit('queued_jobs', ARGV[2]))
  standing(redis.call('HGET', P .. 'waiting_tokens', tenant), limit('queued_tokens', ARGV[3]))
  answer[#answer + 1] = told
end
return answer
