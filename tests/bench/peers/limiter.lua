-- The access phase of the nginx + Lua + Redis contender: key to tenant, one script call, verdict.
-- The settling variant also reads the answer's usage and books the difference afterwards, from a
-- timer shared by all that ended in the same turn, since nginx allows no socket in its body and log
-- phases.
local redis = require "nginx.redis"
local cjson = require "cjson"

local M = {}
local admit_script, admit_sha, settle_sha, redis_socket
local queue, pending = {}, false

-- A real deployment caches its key table like this: whose key it is. Each has its organization's bucket.
local tenants = {}
local capacity, refill_per_s

local function read(path)
    local file = assert(io.open(path))
    local text = file:read("*a")
    file:close()
    return text
end

function M.configure(admit_path, admit_digest, settle_digest, socket, callers, many, tokens, refill)
    admit_script, admit_sha, settle_sha, redis_socket = read(admit_path), admit_digest, settle_digest, socket
    capacity, refill_per_s = tokens, refill
    for _, organizations in ipairs({1, many}) do
        for caller = 0, callers - 1 do
            tenants[string.format("Bearer tk_bench_%d_%05d", organizations, caller)] = tostring(caller % organizations)
        end
    end
end

local function connect()
    local connection = redis:new()
    connection:set_timeout(1000)
    local ok, err = connection:connect("unix:" .. redis_socket)
    if not ok then
        return nil, err
    end
    return connection
end

local function call(script, sha, ...)
    local connection, err = connect()
    if not connection then
        return nil, err
    end
    local answer, failure = connection:evalsha(sha, ...)
    if not answer and failure and failure:find("NOSCRIPT", 1, true) then
        answer, failure = connection:eval(script, ...)
    end
    if not answer then
        connection:close()
        return nil, failure
    end
    connection:set_keepalive(60000, 256)
    return answer
end

local function refuse(status, body)
    ngx.status = status
    ngx.header["Content-Type"] = "application/json"
    ngx.say(body)
    return ngx.exit(status)
end

-- What the body says decides: its model, and the most it may be answered.
local function asked()
    ngx.req.read_body()
    local ok, body = pcall(cjson.decode, ngx.req.get_body_data() or "")
    if not ok or type(body) ~= "table" or type(body.model) ~= "string" then
        return refuse(400, '{"error":{"message":"not a call"}}')
    end
    return tonumber(body.max_tokens) or 16
end

function M.admit(reads)
    local tenant = tenants[ngx.var.http_authorization or ""]
    if not tenant then
        return refuse(401, '{"error":{"message":"unknown key"}}')
    end
    local need = math.floor((tonumber(ngx.var.http_content_length) or 0) / 4) + (reads and asked() or 16)
    local request_id = ngx.var.request_id
    local answer, err = call(admit_script, admit_sha, 2,
        "bucket:{" .. tenant .. "}", "ledger:{" .. tenant .. "}",
        need, capacity, refill_per_s, request_id, tenant)
    if not answer then
        ngx.log(ngx.ERR, "redis: ", err)
        return refuse(503, '{"error":{"message":"limits unavailable"}}')
    end
    if answer[1] ~= 1 then
        return refuse(429, '{"error":{"message":"quota exceeded"}}')
    end
    ngx.header["x-ratelimit-remaining-tokens"] = answer[2]
    ngx.ctx.tenant, ngx.ctx.need, ngx.ctx.request_id = tenant, need, request_id
end

-- Usage stands at the end of an answer, streamed or not.
function M.collect()
    local context = ngx.ctx
    context.body = ((context.body or "") .. (ngx.arg[1] or "")):sub(-4096)
end

-- All answers that ended since the last flush are booked in one write to Redis and one read.
local function flush()
    pending = false
    local batch = queue
    queue = {}
    local connection, err = connect()
    if not connection then
        ngx.log(ngx.ERR, "redis: ", err)
        return
    end
    connection:init_pipeline(#batch)
    for _, one in ipairs(batch) do
        local used = one.body:match('"total_tokens"%s*:%s*(%d+)') or one.held
        connection:evalsha(settle_sha, 2, "bucket:{" .. one.tenant .. "}", "ledger:{" .. one.tenant .. "}",
            one.held, used, one.request_id, one.tenant)
    end
    local answers, failure = connection:commit_pipeline()
    if not answers then
        ngx.log(ngx.ERR, "redis: ", failure)
        return connection:close()
    end
    for _, answer in ipairs(answers) do
        if answer[1] == false then
            ngx.log(ngx.ERR, "redis: ", answer[2])
        end
    end
    connection:set_keepalive(60000, 256)
end

function M.book()
    local context = ngx.ctx
    if context.tenant then
        queue[#queue + 1] = { tenant = context.tenant, request_id = context.request_id,
            held = context.need, body = context.body or "" }
        if not pending then
            pending = true
            ngx.timer.at(0, flush)
        end
    end
end

return M
