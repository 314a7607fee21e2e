-- Write something, whatever there is: what is written last stands for all that was written before it, when somebody
-- waits until it is on disk or at replicas.
-- Touches: mark.
-- Returns 'ok'.
redis.call('SET', P .. 'mark', '1')
return 'ok'
