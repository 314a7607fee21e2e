-- End jobs that have not ended, whatever they are doing; a worker that runs one hears of it at its next beat.
-- Touches: job:, out:, and what an end touches.
-- ARGV: retention ms, then ids.
-- Returns for each job its state afterwards, or ''.
local answer, lines = {}, {}
for i = 2, #ARGV do
  local job = load(ARGV[i])
  if job and not has_ended(job) then
    lines[#lines + 1] = finish(job, 'cancelled', tonumber(ARGV[1]), 'cancelled',
      {'finish_reason', 'cancelled', 'resumed', int(job.base)})
  end
  answer[#answer + 1] = job and job.state or ''
end
announce(lines)
return answer
