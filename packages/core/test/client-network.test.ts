/** The client on Node's `fetch`. */
import { setupServer } from 'msw/node';
import { clientNetworkSuite } from './client-network.ts';

const server = setupServer();

clientNetworkSuite('Node', {
  start: async () => void (await server.listen({ onUnhandledFrame: 'error' })),
  use: (...handlers) => server.use(...handlers),
  reset: () => server.resetHandlers(),
  stop: async () => void (await server.close()),
});
