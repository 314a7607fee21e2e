-- What all scripts share: names of keys, the clock, what is read of a job, and how waiters hear of it.
--
-- KEYS[1] is the prefix; every other key is built from it. A script reads and checks first, writes last, and raises
-- nothing after its first write. A job is in exactly one place for its state:
--   queued      queue:<model>:<priority>:<tenant>, or delayed        counts.queued       waiting
--   dispatched  dispatched                                           counts.dispatched   waiting
--   running     running, held:<worker>                               counts.running
--   ended       kept:<tenant> (and dead)
local P = KEYS[1]
local clock = redis.call('TIME')
local NOW = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local LEVELS = {'high', 'normal', 'low'}
local PROOF = 16        -- tokens that clear a job of its losses
local LOSSES_SUSPECT = 3 -- losses in a row that make a job a suspect
local PIECE = 1000      -- values that one unpack may hold; Lua refuses about 8,000
local WRITES, READS = 2, 2 -- schemas; as in farm/schema.py

local function int(n) return string.format('%.0f', n) end
local function key_job(id) return P .. 'job:' .. id end
local function key_out(id) return P .. 'out:' .. id end
local function key_history(id) return P .. 'history:' .. id end
local function key_queue(job) return P .. 'queue:' .. job.model .. ':' .. job.priority .. ':' .. job.tenant end
local function key_lanes(model, level) return P .. 'lanes:' .. model .. ':' .. level end
local function key_worker(worker) return P .. 'worker:' .. worker end
local function key_held(worker) return P .. 'held:' .. worker end
local function key_jobs(tenant) return P .. 'jobs:' .. tenant end
local function key_kept(tenant) return P .. 'kept:' .. tenant end
local function key_usage(tenant, day) return P .. 'usage:' .. tenant .. ':' .. day end
local function key_hooks(lane) return P .. 'hooks:' .. lane end
local function key_hook_lanes(tenant) return P .. 'hook_lanes:' .. tenant end
local function key_batch(id) return P .. 'batch:' .. id end
local function key_parts(id) return P .. 'batch_parts:' .. id end
local function key_batches(tenant) return P .. 'batches:' .. tenant end
local function key_file(id) return P .. 'file:' .. id end
local function key_files(tenant) return P .. 'files:' .. tenant end
local function key_place(tenant, id) return P .. 'place:' .. tenant .. ':' .. id end

-- The fields of a job that moves between states need, or nil when there is no such job.
local FIELDS = {'state', 'model', 'priority', 'tenant', 'seq', 'nonce', 'attempt', 'worker', 'base', 'strikes',
  'losses', 'retries', 'dispatch', 'claimed', 'cost', 'charged', 'deadline', 'plain', 'bytes', 'prompt_tokens', 'tries',
  'not_before', 'probation', 'billed', 'webhook', 'schema', 'revision'}
local function load(id)
  local values = redis.call('HMGET', key_job(id), unpack(FIELDS))
  if not values[1] then return nil end
  local job = {id = id}
  for i, name in ipairs(FIELDS) do job[name] = values[i] or nil end
  for _, name in ipairs({'seq', 'attempt', 'base', 'strikes', 'losses', 'retries', 'dispatch', 'claimed', 'cost',
      'charged', 'deadline', 'bytes', 'prompt_tokens', 'tries', 'not_before', 'billed'}) do
    job[name] = tonumber(job[name] or 0)
  end
  job.schema = tonumber(job.schema or 1) or READS + 1 -- what is no number is nothing that we know
  return job
end

local function has_ended(job)
  return job.state ~= 'queued' and job.state ~= 'dispatched' and job.state ~= 'running'
end

local function count(model, state, delta) redis.call('HINCRBY', P .. 'counts:' .. model, state, delta) end

-- A function that tells a tenant's limits by name: its own, else the settings' as text; nil for none.
local function limits_of(tenant)
  local own = redis.call('HGET', P .. 'limits', tenant)
  own = own and cjson.decode(own) or {}
  return function(name, default)
    if own[name] == nil then return tonumber(default) end
    return own[name] ~= cjson.null and own[name] or nil
  end
end

local function total(name, delta) redis.call('HINCRBY', P .. 'totals', name, delta or 1) end
local function tally(what, model, delta) redis.call('HINCRBY', P .. 'tally', what .. ':' .. model, delta or 1) end
local function is_registered(worker) return redis.call('HEXISTS', key_worker(worker), 'name') == 1 end

-- Append token entries ARGV[first..last]; returns their bytes.
local function append(id, first, last)
  local size, length = 0, 0
  for k = first, last do size = size + #ARGV[k] end
  for k = first, last, PIECE do
    length = redis.call('RPUSH', key_out(id), unpack(ARGV, k, math.min(k + PIECE - 1, last)))
  end
  if length == last - first + 1 then redis.call('HSETNX', key_job(id), 'first_token', int(NOW)) end
  return size
end

-- Leave word where a member stood that is taken off a list, for whoever goes on from there: that page was its last.
local PLACE_KEPT = 3600000
local function keep_place(tenant, id, score)
  if score then redis.call('SET', key_place(tenant, id), score, 'PX', PLACE_KEPT) end
end

local function wake() if redis.call('LLEN', P .. 'wake') == 0 then redis.call('RPUSH', P .. 'wake', '1') end end

-- Tell waiters: one line per job, "id tokens state".
local function announce(lines)
  if #lines > 0 then
    redis.call('XADD', P .. 'events', 'MAXLEN', '~', '10000', '*', 'j', table.concat(lines, '\n'))
  end
end

-- Whether the ledger has been written in a schema that these scripts don't know.
local function is_beyond_us() return tonumber(redis.call('GET', P .. 'schema') or 1) > READS end

-- Every call of a worker or keeper is a beat. After a silence of the server all leases get one lease's time.
local function beat(stall, lease)
  local last = tonumber(redis.call('GET', P .. 'beat') or NOW)
  if NOW - last > stall then redis.call('SET', P .. 'grace', int(NOW + lease)) end
  redis.call('SET', P .. 'beat', int(NOW))
end
