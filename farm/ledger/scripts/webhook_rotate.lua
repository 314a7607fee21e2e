-- Give a tenant a new secret for its webhooks. Those before it sign beside it until their time has passed, the latest
-- few of them. A repetition with a secret that was given changes nothing.
-- Touches: webhook_secrets.
-- ARGV: tenant, the new secret, for how many seconds the one before stays, how many that were before may stay.
-- Returns 'ok'.
local tenant, new, now = ARGV[1], ARGV[2], math.floor(NOW / 1000)
local seen = redis.call('HGET', P .. 'webhook_secrets', tenant)
local record = seen and cjson.decode(seen) or {}
if record.secret == new or record.old == new then return 'ok' end
for _, older in ipairs(record.older or {}) do
  if older[1] == new then return 'ok' end
end
local before = {}
local function keep(secret, till)
  if secret and till > now and #before < tonumber(ARGV[4]) then before[#before + 1] = {secret, till} end
end
keep(record.secret, now + tonumber(ARGV[3]))
keep(record.old, record.old_until or 0)
for _, older in ipairs(record.older or {}) do keep(older[1], older[2]) end
local written = {secret = new}
local latest = table.remove(before, 1)
if latest then written.old, written.old_until = latest[1], latest[2] end
if #before > 0 then written.older = before end
redis.call('HSET', P .. 'webhook_secrets', tenant, cjson.encode(written))
return 'ok'
