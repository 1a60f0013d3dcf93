export { VERSION as AGENT_VERSION } from '../protocol/version.ts';
