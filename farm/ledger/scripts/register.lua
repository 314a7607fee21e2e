-- Make a worker known. An older incarnation of the same name is gone: its jobs are lost to it and queued again at once.
-- If it lives after all (it slept, or two workers were given one name), it may register again, beside its successor: to
-- take the name back would have the two take each other's jobs for ever.
-- A ledger written in a schema that the worker does not know refuses it and changes nothing.
-- Touches: schema, names, workers, worker:, held:, models, beat, grace, and what a loss touches.
-- ARGV: worker, name, model, capacity, role, model facts as JSON or '', stall ms, lease ms, retention ms, most strikes,
--   most losses.
-- Returns the number of jobs taken from older incarnations, and 0 or the schema that the worker does not know.
local worker, name = ARGV[1], ARGV[2]
local schema = tonumber(redis.call('GET', P .. 'schema') or 1)
if schema > READS then return {0, schema} end
if schema < WRITES then redis.call('SET', P .. 'schema', WRITES) end
beat(tonumber(ARGV[7]), tonumber(ARGV[8]))
local older = redis.call('HGET', P .. 'names', name)
local had_successor = redis.call('HGET', key_worker(worker), 'superseded')
local jobs = {}
if older and older ~= worker and not had_successor then
  for _, id in ipairs(redis.call('SMEMBERS', key_held(older))) do
    local job = load(id)
    if job and job.state == 'running' and job.worker == older then jobs[#jobs + 1] = job end
  end
  announce(lose(jobs, 'worker_restarted',
    {retention = tonumber(ARGV[9]), strikes = tonumber(ARGV[10]), losses = tonumber(ARGV[11])}))
  redis.call('DEL', key_worker(older), key_held(older))
  redis.call('ZREM', P .. 'workers', older)
  redis.call('HSET', key_worker(older), 'superseded', worker)
  redis.call('PEXPIRE', key_worker(older), 86400000)
end
if had_successor then
  redis.call('PERSIST', key_worker(worker))
  redis.call('HSETNX', P .. 'names', name, worker)
else
  redis.call('HSET', P .. 'names', name, worker)
end
redis.call('HSET', key_worker(worker), 'name', name, 'model', ARGV[3], 'capacity', ARGV[4], 'role', ARGV[5])
redis.call('HSETNX', key_worker(worker), 'since', int(NOW))
if ARGV[6] ~= '' then
  redis.call('HSET', P .. 'models', ARGV[3], ARGV[6])
  redis.call('HSET', key_worker(worker), 'revision', cjson.decode(ARGV[6]).fingerprint)
end
redis.call('ZADD', P .. 'workers', NOW, worker)
wake()
return {#jobs, 0}
