-- What several jobs have from a token on, for those who stream them. Reads only.
-- Touches: job:, out:.
-- ARGV: for each: job id, index of the first token wanted.
-- Returns for each: state ('' when there is no such job), text after the last token, how often the job began anew, the
--   entries with commas between.
local answer = {}
for i = 1, #ARGV, 2 do
  local seen = redis.call('HMGET', key_job(ARGV[i]), 'state', 'tail', 'restarts')
  answer[#answer + 1] = seen[1] or ''
  answer[#answer + 1] = seen[2] or ''
  answer[#answer + 1] = seen[3] or '0'
  answer[#answer + 1] = seen[1] and table.concat(redis.call('LRANGE', key_out(ARGV[i]), ARGV[i + 1], -1), ',') or ''
end
return answer
