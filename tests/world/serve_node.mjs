// Run a server of Node on the loopback address alone, whatever it would listen on: node serve_node.mjs FILE …

import net from "node:net";
import { pathToFileURL } from "node:url";

const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (port, ...more) {
  return listen.call(this, port, "127.0.0.1", ...more.filter((one) => typeof one === "function"));
};
process.argv.splice(1, 1);
await import(pathToFileURL(process.argv[1]));
