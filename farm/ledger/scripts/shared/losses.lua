-- What becomes of jobs whose worker or engine died, and which of them is blamed.

-- Whether a job may be what took its worker down, and how many new tokens clear it. On probation: it was dead.
local function is_suspect(job) return job.strikes > 0 or job.losses >= LOSSES_SUSPECT or job.probation == '1' end
local function proof(job) return job.losses >= LOSSES_SUSPECT and PROOF or 1 end
local function is_proven(job, tokens) return tokens - job.base >= proof(job) end

-- Whether its next loss may be its last. Then a worker has it run alone.
local function is_on_trial(job, limits)
  return is_suspect(job) and (job.strikes >= limits.strikes - 1 or job.losses >= limits.losses - 1)
end

-- A worker or engine died with these running jobs aboard. An unproven suspect is struck alone; without one, every job
-- with no new token is. All that got little further have a loss more, or who kills every few tokens could hide behind
-- suspects. A job is dead only for a loss that nobody else aboard can have caused: the others were proven. A worker
-- that lives and lost a job (is_alive: a claim whose answer never came) strikes nobody. Returns lines to announce.
local function lose(jobs, reason, limits, is_alive)
  local lines, blamed, young = {}, false, 0
  for _, job in ipairs(jobs) do
    job.tokens = redis.call('LLEN', key_out(job.id))
    job.gained = job.tokens - job.base
    job.unproven = is_suspect(job) and not is_proven(job, job.tokens)
    blamed = blamed or job.unproven
    if job.gained < PROOF then young = young + 1 end
  end
  for _, job in ipairs(jobs) do
    local is_young = job.gained < PROOF
    local is_sure = young == (is_young and 1 or 0)
    job.losses = is_young and job.losses + 1 or 0
    if not is_alive and (not blamed or job.unproven) then
      job.strikes = job.gained == 0 and job.strikes + 1 or 0
    end
    if not is_sure then
      job.strikes = math.min(job.strikes, math.max(1, limits.strikes - 1))
      job.losses = math.min(job.losses, math.max(LOSSES_SUSPECT, limits.losses - 1))
    end
    redis.call('HSET', key_job(job.id), 'strikes', job.strikes, 'losses', job.losses)
    record_attempt(job, reason)
    if is_sure and (job.strikes >= limits.strikes or job.losses >= limits.losses) then
      local why = job.strikes >= limits.strikes
        and ('its worker or engine died ' .. job.strikes .. ' times before it gave a token')
        or ('its worker or engine died ' .. job.losses .. ' times in a row')
      job.recorded = true
      lines[#lines + 1] = finish(job, 'dead', limits.retention, reason,
        {'error', cjson.encode({code = 'job_dead', message = why, retryable = false})})
    else
      total('released:' .. reason)
      requeue(job, NOW)
    end
  end
  return lines
end
