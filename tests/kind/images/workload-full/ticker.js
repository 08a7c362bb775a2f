// Prints 1, 2, 3, … from a timer while an HTTP server answers itself; ends when an answer is wrong or missing.
const http = require("node:http");

let n = 0;
let answered = 0;
const server = http.createServer((request, response) => response.end(request.url.slice(1)));
server.listen(8080, "127.0.0.1", () => {
  const agent = new http.Agent({ keepAlive: true });
  setInterval(() => {
    const asked = ++n;
    console.log(asked);
    http.get({ port: 8080, path: `/${asked}`, agent }, (response) => {
      let body = "";
      response.on("data", (part) => (body += part));
      response.on("end", () => {
        if (Number(body) !== asked) process.exit(3);
        answered = asked;
      });
    });
    if (asked - answered > 50) process.exit(4);
  }, 100);
});
