// Asks Tollkeeper whether a call may pass, and tells it the answer: it reads there what the call used.

// Of a longer answer its beginning and its end are told: there stands what it used.
const BEGINNING_MAX = 6 * 1024 * 1024, END_MAX = 1024 * 1024;
// Fields of Tollkeeper's answer that a client may see: the id of a hold is not among them.
const TOLD = ['ratelimit', 'ratelimit-policy', 'retry-after', 'www-authenticate', 'content-type',
    'x-tollkeeper-reason', 'x-tollkeeper-tokens-remaining', 'x-tollkeeper-credits-remaining',
    'x-tollkeeper-budget'];
let parts = [], ends = [], size = 0, behind = 0;

async function ask(r) {
    const asked = await r.subrequest('/_tollkeeper/ask', { method: r.method, body: r.requestText || '' });
    TOLD.forEach(name => {
        if (asked.headersOut[name]) r.headersOut[name] = asked.headersOut[name];
    });
    if (asked.status === 200) {
        r.variables.tollkeeper_hold = asked.headersOut['x-tollkeeper-hold'] || '';
        r.internalRedirect('@model');
        return;
    }
    r.return(asked.status >= 500 ? 503 : asked.status, asked.responseText);
}

function refuse(r) {
    const status = Number(r.variables.tollkeeper_status);
    r.return(status >= 400 && status < 500 ? status : 503);
}

function collect(r, data, flags) {
    if (r.variables.tollkeeper_hold && data.length) {
        size += data.length;
        if (size <= BEGINNING_MAX) {
            parts.push(data);
        } else {
            ends.push(data);
            behind += data.length;
            while (behind - ends[0].length >= END_MAX) behind -= ends.shift().length;
        }
    }
    // The answer is over; or it broke off, and nothing more comes.
    if (r.variables.tollkeeper_hold && (flags.last || !data.length)) {
        r.variables.tollkeeper_answer = Buffer.concat(parts.concat(ends)).toString();
        r.variables.tollkeeper_told = '1';
    }
    r.sendBuffer(data, flags);
}

export default { ask, refuse, collect };
