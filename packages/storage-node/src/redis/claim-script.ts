/**
 * The one script that runs inside Redis: looks whether the server may have forgotten anything, and claims a pair, in one atomic step.
 *
 * It reads the server's own lineage (the replication id, which is another after each restart and each promotion) and its own clock, so
 * it depends neither on a connection staying with one server nor on what any process believes about it.
 */

/** How far the clock of Redis and that of a process may be apart, either way. */
export const MAX_SKEW_MS = 1000;
/** How far ahead a request may be dated: what was accepted before a loss is refused for as long after it. */
export const MAX_FUTURE_SECONDS = 2;

/**
 * KEYS: the store, a sorted set.
 * ARGV: time of the process in ms; whether to look at the eviction policy (1 or 0); how long a master that was cut off may go on, in ms;
 * how many expired pairs to forget at most; and, unless the server is only to be checked: pair; created, in s; expires, in ms.
 *
 * Answers { verdict, time of the server in ms, what goes with the verdict }.
 *
 * All is in one key, so that nothing can be lost in part. A pair has the time at which it expires for its score. Two members that are no
 * pairs have negative ones: `lineage:…` says that this server knows all that was claimed and created after minus its score (in s), and
 * `forgotten` that pairs which expire until minus its score (in ms) are not there any more. No key has a time to live: by that Redis
 * would forget when its clock has jumped, and nobody would know.
 */
export const CLAIM_SCRIPT: string = `
local store = KEYS[1]
local process = tonumber(ARGV[1])
local time = redis.call('TIME')
local server = time[1] * 1000 + math.floor(time[2] / 1000)

local function tell(section, field)
  return string.match(section, '[\\r\\n]' .. field .. ':([^\\r\\n]*)')
end

local replication = redis.call('INFO', 'replication')
if tell(replication, 'role') ~= 'master' then return { 'replica', server } end
local lineage = tell(replication, 'master_replid') or ''
if not string.match(lineage, '^%x+$') or not string.find(lineage, '[^0]') then return { 'nameless', server } end

if ARGV[2] == '1' then
  local policy = tell(redis.call('INFO', 'memory'), 'maxmemory_policy') or 'not told'
  if policy ~= 'noeviction' then return { 'evicting', server, policy } end
end
if math.abs(server - process) > ${MAX_SKEW_MS} then return { 'skewed', server } end

local floor = redis.call('ZSCORE', store, 'lineage:' .. lineage)
if floor then
  floor = -floor
else
  -- Above all that anybody can have claimed before, by whatever clock within the bounds; and never below an earlier floor.
  local latest = math.max(server, process) + 2 * ${MAX_SKEW_MS} + ARGV[3]
  floor = math.floor(latest / 1000) + ${MAX_FUTURE_SECONDS}
  local states = redis.call('ZRANGEBYSCORE', store, '-inf', '(0', 'WITHSCORES')
  for i = 1, #states, 2 do
    if states[i] ~= 'forgotten' then
      floor = math.max(floor, -states[i + 1])
      redis.call('ZREM', store, states[i])
    end
  end
  redis.call('ZADD', store, -floor, 'lineage:' .. lineage)
end

local due = redis.call('ZRANGEBYSCORE', store, 0, '(' .. math.min(server, process), 'WITHSCORES', 'LIMIT', 0, ARGV[4])
if #due > 0 then
  local names = {}
  for i = 1, #due, 2 do names[#names + 1] = due[i] end
  -- In this order: a full server refuses a script that begins by adding, and lets one go on that began by removing.
  redis.call('ZREM', store, unpack(names))
  redis.call('ZADD', store, -due[#due], 'forgotten')
end

if not ARGV[5] then
  -- A server without room refuses this, as it will refuse to remember a nonce; there is no such member, so nothing changes.
  redis.call('ZADD', store, 'XX', 0, 'room')
  return { 'checked', server, floor }
end
local expires = tonumber(ARGV[7])
if tonumber(ARGV[6]) <= floor then return { 'floor', server, floor } end
local forgotten = redis.call('ZSCORE', store, 'forgotten')
if expires <= math.min(server, process) or (forgotten and expires <= -forgotten) then return { 'expired', server } end
if redis.call('ZADD', store, 'NX', ARGV[7], ARGV[5]) == 1 then return { 'claimed', server } end
return { 'used', server }
`;
