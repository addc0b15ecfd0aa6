-- Runs the operations of state.Op, one for each key; each has four arguments: name, value, second value, seconds.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local out = {}
for i, key in ipairs(KEYS) do
  local name, value, more, seconds = ARGV[4 * i - 3], ARGV[4 * i - 2], ARGV[4 * i - 1], tonumber(ARGV[4 * i])
  local found = false
  local lasts = math.ceil(seconds * 1000)
  if name == 'tally' then
    local bucket = math.floor(now / seconds)
    local current = string.format('%s:%d', key, bucket)
    local before = redis.call('GET', string.format('%s:%d', key, bucket - 1)) or 0
    found = tostring((redis.call('GET', current) or 0) + before * (1 - (now / seconds - bucket)))
    if tonumber(value) ~= 0 then
      redis.call('INCRBY', current, value)
      redis.call('PEXPIRE', current, 2 * lasts)
    end
  elseif name == 'mark' then
    local left = redis.call('PTTL', key)
    if left > 0 then lasts = math.max(left, math.ceil(value * 1000)) end
    redis.call('SET', key, 1, 'PX', lasts)
    local list = string.sub(key, 1, string.find(key, ':', 9)) .. 'list'
    redis.call('ZREMRANGEBYSCORE', list, '-inf', now)
    redis.call('ZADD', list, now + lasts / 1000, key)
    redis.call('ZREMRANGEBYRANK', list, 0, -1 - LISTED)
    redis.call('PEXPIRE', list, math.max(lasts, redis.call('PTTL', list)))
  elseif name == 'marked' then
    found = redis.call('EXISTS', key)
  elseif name == 'marks' then
    local all = redis.call('ZREVRANGEBYSCORE', key .. 'list', '+inf', now)
    found = {}
    for _, each in ipairs(all) do
      local left = redis.call('PTTL', each)
      if left > 0 then found[#found + 1] = each; found[#found + 1] = left end
    end
  elseif name == 'shift' then
    found = {}
    local gap = SLOTS - 1
    for slot = SLOTS - 1, 0, -1 do
      local kept = redis.call('GET', key .. ':' .. slot)
      if kept then table.insert(found, 1, kept) else gap = slot end
    end
    if value ~= '' then
      for slot = gap - 1, 0, -1 do
        redis.call('RENAME', key .. ':' .. slot, key .. ':' .. (slot + 1))
      end
      redis.call('SET', key .. ':0', value, 'PX', lasts)
    end
  elseif name == 'unshift' then
    for slot = 0, SLOTS - 1 do
      if redis.call('GET', key .. ':' .. slot) == value then
        redis.call('DEL', key .. ':' .. slot)
        break
      end
    end
  elseif name == 'push' then
    local kept = redis.call('LRANGE', key, 0, -1)
    found = {kept, redis.call('EXISTS', key .. ':lost')}
    local known = value == ''
    for _, each in ipairs(kept) do known = known or each == value end
    if not known then
      if redis.call('LPUSH', key, value) > PUSHED then
        redis.call('LTRIM', key, 0, PUSHED - 1)
        redis.call('SET', key .. ':lost', 1, 'PX', lasts)
      end
      redis.call('PEXPIRE', key, lasts)
    end
  elseif name == 'pull' then
    redis.call('LREM', key, 0, value)
  elseif name == 'evicted' then
    found = tonumber(string.match(redis.call('INFO', 'stats'), 'evicted_keys:(%d+)'))
  elseif name == 'drop' then
    redis.call('DEL', key)
  elseif name == 'now' then
    found = tostring(now)
  elseif name == 'put' then
    redis.call('HSET', key, value, more)
  elseif name == 'fields' then
    found = redis.call('HKEYS', key)
  elseif name == 'field' then
    found = redis.call('HGET', key, value)
  elseif name == 'remove' then
    redis.call('HDEL', key, value)
  elseif name == 'add' then
    redis.call('HINCRBY', key, value, 1)
  end
  out[i] = found
end
return out
