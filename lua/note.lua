-- note: store until when contents are paid that an upstream stores by the hour; the end only grows.
-- needs: state
-- KEYS[1] note string: a payment as JSON (gateway/core/accounts/cache_payment.py); expires at its end (EXAT), written only here
-- ARGV[1] a payment likewise; that of another organization is replaced
-- Returns the payment that was kept before, or false
-- Example: paid until 100 and 300, by calls that overlap: the later of them gets the other's end, and pays what is beyond it
if #KEYS ~= 1 or #ARGV ~= 1 then return redis.error_reply('ERR note takes 1 key and 1 argument') end
local before, payment = call('GET', KEYS[1]), cjson.decode(ARGV[1])
local other = before and cjson.decode(before)
if not other or other.organization_id ~= payment.organization_id or other.until_s < payment.until_s then
  call('SET', KEYS[1], ARGV[1], 'EXAT', format('%d', payment.until_s))
end
return before
