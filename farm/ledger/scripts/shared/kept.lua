-- The results that are kept: whose they are, how old, how many and how large, and so which of them goes first.
--
-- A tenant's stand in kept:<tenant> as id|bytes by their end. Tenants stand in kept_oldest and kept_newest by the ends
-- of these, in kept_jobs by how many they have and in kept_bytes by how large those are; kept_all has the
-- sums of all tenants.

-- Bring a tenant's places and the sums up to date, after so many results came or went.
local function reckon(tenant, jobs, bytes)
  redis.call('HINCRBY', P .. 'kept_all', 'jobs', int(jobs))
  redis.call('HINCRBY', P .. 'kept_all', 'bytes', int(bytes))
  local oldest = redis.call('ZRANGE', key_kept(tenant), 0, 0, 'WITHSCORES')
  if oldest[1] then
    local newest = redis.call('ZREVRANGE', key_kept(tenant), 0, 0, 'WITHSCORES')
    redis.call('ZADD', P .. 'kept_oldest', oldest[2], tenant)
    redis.call('ZADD', P .. 'kept_newest', newest[2], tenant)
    redis.call('ZINCRBY', P .. 'kept_jobs', int(jobs), tenant)
    redis.call('ZINCRBY', P .. 'kept_bytes', int(bytes), tenant)
  else
    redis.call('ZREM', P .. 'kept_oldest', tenant)
    redis.call('ZREM', P .. 'kept_newest', tenant)
    redis.call('ZREM', P .. 'kept_jobs', tenant)
    redis.call('ZREM', P .. 'kept_bytes', tenant)
  end
end

-- List a result. One that is there already, of another life of its id, moves to its new end.
local function list_result(tenant, id, bytes, ended)
  local is_new = redis.call('ZADD', key_kept(tenant), ended, id .. '|' .. int(bytes))
  reckon(tenant, is_new, is_new * bytes)
end

-- Strike a job's result off the list.
local function strike_result(job)
  if redis.call('ZREM', key_kept(job.tenant), job.id .. '|' .. int(job.bytes)) == 1 then
    reckon(job.tenant, -1, -job.bytes)
  elseif redis.call('ZREM', P .. 'finished', job.id .. '|' .. int(job.bytes) .. '|' .. job.tenant) == 1 then
    redis.call('DECRBY', P .. 'finished_bytes', int(job.bytes)) -- a version before this one had listed it
  end
end
