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
local old_dim = redis.call('HGET', meta, 'dim:' .. name)
local have_rows = tonumber(redis.call('HGET', meta, 'rows') or 0)
local have_bytes = tonumber(redis.call('HGET', meta, 'bytes') or 0)
local more_rows, more_bytes = 0, 0
for i = 6, #ARGV, 2 do
  local size = redis.call('HSTRLEN', rows, ARGV[i])
  if size == 0 then more_rows = more_rows + 1 end
  more_bytes = more_bytes + #ARGV[i + 1] + 8 - size
end
if (more_rows > 0 or more_bytes > 0) and (have_rows + more_rows > max_rows or have_bytes + more_bytes > max_bytes) then
  return {'full', have_rows + more_rows, have_bytes + more_bytes}
end
if old_dim and old_dim ~= dim then clear() end
redis.call('HSET', meta, 'dim:' .. name, dim)
local prefix = struct.pack('<d', sequence)
for i = 6, #ARGV, 2 do store(ARGV[i], prefix .. ARGV[i + 1]) end
finish()
return {'stored', text, redis.call('HGET', meta, 'incarnation')}
"""
)
"""ARGV: table, incarnation, D, most rows, most bytes, then id and row by turns. All or none are stored."""

DROP = (
    _BEGIN
    + """
local until_, most_removed = tonumber(ARGV[3]), tonumber(ARGV[4])
if #ARGV == 4 then clear() end
for i = 5, #ARGV do
  local value = redis.call('HGET', rows, ARGV[i])
  if not value or struct.unpack('<d', value) <= until_ then -- one that Redis lost may still be given back
    remove(ARGV[i])
    redis.call('ZADD', changed, text, ARGV[i])
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
"""ARGV: table, incarnation, a sequence number, removed ids to remember, then ids (none: all rows)."""

MERGE = (
    _BEGIN
    + """
local cleared = tonumber(redis.call('HGET', meta, 'cleared:' .. name) or 0)
redis.call('HSETNX', meta, 'dim:' .. name, ARGV[3])
if redis.call('HGET', meta, 'dim:' .. name) == ARGV[3] then
  for i = 4, #ARGV, 2 do
    local mine = struct.unpack('<d', ARGV[i + 1])
    local value = redis.call('HGET', rows, ARGV[i])
    local last = tonumber(redis.call('ZSCORE', changed, ARGV[i]) or 0)
    if value then last = struct.unpack('<d', value) end
    if mine > math.max(last, cleared) then store(ARGV[i], ARGV[i + 1]) end
  end
end
finish()
return {'merged', text}
"""
)
"""ARGV: table, incarnation, D, then id and stored value by turns. A value is taken where nothing newer is known."""
