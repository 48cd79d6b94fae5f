"""What Redis runs for the overlay, each script at once and alone. ``hfh_embed/redis_rows.py`` names the keys."""

from __future__ import annotations

__all__ = ["DROP", "MERGE", "PUT"]

_BEGIN = """
local meta, log, rows, changed = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local name, incarnation = ARGV[1], ARGV[2]
redis.call('HSETNX', meta, 'incarnation', incarnation)
local now = redis.call('TIME')
local sequence = math.max(now[1] * 1000000 + now[2], tonumber(redis.call('HGET', meta, 'sequence') or 0) + 1)
local text = string.format('%.0f', sequence)
local count, bytes = 0, 0
local function split(text)
  local ids = {}
  for id in string.gmatch(text, '%d+') do ids[#ids + 1] = id end
  return ids
end
local function part(data, i, size) return string.sub(data, (i - 1) * size + 1, i * size) end
local function remove(id)
  local size = redis.call('HSTRLEN', rows, id)
  if size > 0 then
    redis.call('HDEL', rows, id)
    count, bytes = count - 1, bytes - size
  end
end
local function clear()
  local there, dim = redis.call('HLEN', rows), tonumber(redis.call('HGET', meta, 'dim:' .. name) or 0)
  count, bytes = count - there, bytes - there * (8 + 4 * dim)
  redis.call('DEL', rows, changed)
  redis.call('HSET', meta, 'floor:' .. name, text, 'cleared:' .. name, text)
end
local function store(id, value)
  local size = redis.call('HSTRLEN', rows, id)
  redis.call('HSET', rows, id, value)
  redis.call('ZADD', changed, text, id)
  if size == 0 then count = count + 1 end
  bytes = bytes + #value - size
end
local function finish()
  redis.call('HINCRBY', meta, 'rows', count)
  redis.call('HINCRBY', meta, 'bytes', bytes)
  redis.call('HSET', meta, 'sequence', text, 'sequence:' .. name, text)
  redis.call('XADD', log, 'MAXLEN', '1', '*', 'sequence', text)
end
"""

PUT = (
    _BEGIN
    + """
local dim, max_rows, max_bytes = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local ids, size = split(ARGV[6]), 4 * tonumber(ARGV[3])
local old_dim = redis.call('HGET', meta, 'dim:' .. name)
local have_rows = tonumber(redis.call('HGET', meta, 'rows') or 0)
local have_bytes = tonumber(redis.call('HGET', meta, 'bytes') or 0)
local more_rows, more_bytes = 0, 0
for _, id in ipairs(ids) do
  local have = redis.call('HSTRLEN', rows, id)
  if have == 0 then more_rows = more_rows + 1 end
  more_bytes = more_bytes + size + 8 - have
end
if (more_rows > 0 or more_bytes > 0) and (have_rows + more_rows > max_rows or have_bytes + more_bytes > max_bytes) then
  return {'full', have_rows + more_rows, have_bytes + more_bytes}
end
if old_dim and old_dim ~= dim then clear() end
redis.call('HSET', meta, 'dim:' .. name, dim)
local prefix = struct.pack('<d', sequence)
for i, id in ipairs(ids) do store(id, prefix .. part(ARGV[7], i, size)) end
finish()
return {'stored', text, redis.call('HGET', meta, 'incarnation')}
"""
)
"""ARGV: table, incarnation, D, most rows, most bytes, ids in decimal, their rows. All or none are stored."""

DROP = (
    _BEGIN
    + """
local until_, most_removed = tonumber(ARGV[3]), tonumber(ARGV[4])
if ARGV[5] == 'all' then clear() end
for _, id in ipairs(split(ARGV[5])) do
  local value = redis.call('HGET', rows, id)
  if not value or struct.unpack('<d', value) <= until_ then -- one that Redis lost may still be given back
    remove(id)
    redis.call('ZADD', changed, text, id)
  end
end
if redis.call('ZCARD', changed) - redis.call('HLEN', rows) > most_removed then
  redis.call('DEL', changed)
  redis.call('HSET', meta, 'floor:' .. name, text)
end
finish()
return {'removed', text, tostring(-count)}
"""
)
"""ARGV: table, incarnation, a sequence number, removed ids to remember, ids in decimal or 'all'."""

MERGE = (
    _BEGIN
    + """
local cleared = tonumber(redis.call('HGET', meta, 'cleared:' .. name) or 0)
redis.call('HSETNX', meta, 'dim:' .. name, ARGV[3])
if redis.call('HGET', meta, 'dim:' .. name) == ARGV[3] then
  for i, id in ipairs(split(ARGV[4])) do
    local given = part(ARGV[5], i, 8 + 4 * tonumber(ARGV[3]))
    local mine = struct.unpack('<d', given)
    local value = redis.call('HGET', rows, id)
    local last = tonumber(redis.call('ZSCORE', changed, id) or 0)
    if value then last = struct.unpack('<d', value) end
    if mine > math.max(last, cleared) then store(id, given) end
  end
end
finish()
return {'merged', text}
"""
)
"""ARGV: table, incarnation, D, ids in decimal, their stored values. A value is taken where nothing newer is known."""
